//! Cranelift: CLIF functions to executable memory, with the strip routines as imports.
//!
//! In: planned bodies. Out: addresses of functions that live as long as [`Code`]. The only place that runs compiled code's
//! addresses as functions is `module.rs`; the only place that makes executable memory is here.

use std::collections::HashMap;

use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{AbiParam, FuncRef, Function, SigRef, Signature, UserFuncName};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, default_libcall_names};

use crate::clif::{self, Drive, Imports};
use crate::isa::Isa;
use crate::nest::{Plan, Scope};
use crate::strip;
use crate::wide::{CodeMemory, LANES, Program};

/// Compiling failed: a limit of Cranelift or of the machine, not of the recipe.
#[derive(Debug)]
pub struct CompileError(pub String);

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot compile: {}", self.0)
    }
}

impl std::error::Error for CompileError {}

/// A compiler that still takes functions.
pub(crate) struct Jit {
    module: JITModule,
    context: FunctionBuilderContext,
    routines: HashMap<&'static str, FuncId>,
    n_functions: u32,
    isa: Isa,
    wide: CodeMemory,
}

/// Executable memory.
pub(crate) struct Code {
    module: Option<JITModule>,
    _wide: CodeMemory,
}

// SAFETY: after `finish` the module is only kept to be freed; its code is read-only and may run on any thread.
unsafe impl Send for Code {}
// SAFETY: as above; no method takes `&self`.
unsafe impl Sync for Code {}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: the addresses go with the `Module` that owns this.
            unsafe { module.free_memory() }
        }
    }
}

fn error(context: &str, what: impl std::fmt::Display) -> CompileError {
    CompileError(format!("{context}: {what}"))
}

/// Whether strips of this length are worth vector programs, and the machine has their registers.
pub(crate) fn is_wide(isa: Isa, strip: u64) -> bool {
    cfg!(all(target_arch = "x86_64", target_os = "linux")) && isa >= Isa::Avx512 && strip >= LANES / 2
}

impl Jit {
    pub(crate) fn new(isa: Isa) -> Result<Jit, CompileError> {
        let mut flags = settings::builder();
        let checks = if cfg!(debug_assertions) { "true" } else { "false" };
        let wanted = [
            ("opt_level", "speed"),
            ("is_pic", "false"),
            ("enable_verifier", checks),
            ("use_colocated_libcalls", "false"),
        ];
        for (name, value) in wanted {
            flags.set(name, value).map_err(|what| error("a setting", what))?;
        }
        let native = cranelift_native::builder().map_err(|what| error("this machine", what))?;
        let target = native.finish(settings::Flags::new(flags)).map_err(|what| error("this machine", what))?;
        let mut builder = JITBuilder::with_isa(target, default_libcall_names());
        for routine in strip::all() {
            builder.symbol(routine.name, routine.address(isa));
        }
        let module = JITModule::new(builder);
        Ok(Jit {
            module,
            context: FunctionBuilderContext::new(),
            routines: HashMap::new(),
            n_functions: 0,
            isa,
            wide: CodeMemory::default(),
        })
    }

    pub(crate) fn is_wide(&self, strip: u64) -> bool {
        is_wide(self.isa, strip)
    }

    fn signature(&self, drive: &Drive) -> Signature {
        let mut signature = self.module.make_signature();
        let n_params = match drive {
            Drive::Product { .. } => 9,
            Drive::Rows => 6,
            Drive::Grid | Drive::Chunks { .. } => 4,
        };
        signature.params = vec![AbiParam::new(I64); n_params];
        signature
    }

    /// The CLIF of a body.
    fn build(&mut self, scope: &Scope<'_>, plan: &Plan, drive: &Drive) -> Function {
        let name = UserFuncName::user(0, self.n_functions);
        let mut function = Function::with_name_signature(name, self.signature(drive));
        let config = self.module.target_config();
        let mut imports = Routines {
            module: &mut self.module,
            known: &mut self.routines,
            here: HashMap::new(),
            wide: &mut self.wide,
            signature: None,
        };
        let builder = FunctionBuilder::new(&mut function, &mut self.context);
        clif::emit(builder, scope, plan, drive, &mut imports).0.finalize(config);
        function
    }

    /// The text of the CLIF, for people and golden tests.
    pub(crate) fn text(&mut self, scope: &Scope<'_>, plan: &Plan, drive: &Drive) -> String {
        self.build(scope, plan, drive).display().to_string()
    }

    /// Compiles a body.
    pub(crate) fn define(&mut self, scope: &Scope<'_>, plan: &Plan, drive: &Drive) -> Result<FuncId, CompileError> {
        let function = self.build(scope, plan, drive);
        let name = format!("k{}", self.n_functions);
        self.n_functions += 1;
        let id = self
            .module
            .declare_function(&name, Linkage::Local, &function.signature)
            .map_err(|what| error(&scope.kernel.name, what))?;
        let mut context = self.module.make_context();
        context.func = function;
        self.module.define_function(id, &mut context).map_err(|what| error(&scope.kernel.name, format!("{what:?}")))?;
        Ok(id)
    }

    /// Makes everything executable; the addresses are those of the ids in order.
    pub(crate) fn finish(mut self, ids: &[FuncId]) -> Result<(Code, Vec<*const u8>), CompileError> {
        self.module.finalize_definitions().map_err(|what| error("linking", what))?;
        if !self.wide.seal() {
            return Err(CompileError("the system gives no memory for code".into()));
        }
        let addresses = ids.iter().map(|id| self.module.get_finalized_function(*id)).collect();
        Ok((Code { module: Some(self.module), _wide: self.wide }, addresses))
    }
}

struct Routines<'a> {
    module: &'a mut JITModule,
    known: &'a mut HashMap<&'static str, FuncId>,
    here: HashMap<&'static str, FuncRef>,
    wide: &'a mut CodeMemory,
    signature: Option<SigRef>,
}

impl Imports for Routines<'_> {
    fn wide(&mut self, builder: &mut FunctionBuilder<'_>, program: &Program) -> (usize, SigRef) {
        let signature = *self.signature.get_or_insert_with(|| {
            let mut signature = self.module.make_signature();
            signature.params = vec![AbiParam::new(I64); 2];
            builder.import_signature(signature)
        });
        (self.wide.function(program), signature)
    }

    fn routine(&mut self, builder: &mut FunctionBuilder<'_>, name: &'static str) -> FuncRef {
        if let Some(known) = self.here.get(name) {
            return *known;
        }
        let id = match self.known.get(name) {
            Some(id) => *id,
            None => {
                let mut signature = self.module.make_signature();
                let params = match name {
                    "uniform_f32" => vec![I64, I32, I32, I32, I32, I64, I64],
                    "pow_f32" | "pow_f64" | "gather_32" => vec![I64; 4],
                    _ => vec![I64; 3],
                };
                signature.params = params.into_iter().map(AbiParam::new).collect();
                let declared = self.module.declare_function(name, Linkage::Import, &signature);
                let id = declared.unwrap_or_else(|what| mdl_graph::bug!("routine {name}: {what}"));
                self.known.insert(name, id);
                id
            }
        };
        let reference = self.module.declare_func_in_func(id, builder.func);
        self.here.insert(name, reference);
        reference
    }
}
