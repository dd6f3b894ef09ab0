//! The arguments of every command, the recipe's own `arg`s among them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use mdl_compiler::stored::Kept;
use mdl_lang::spec;
use mdl_runtime::device::Device;

/// Commands that read a recipe, and so have its `arg`s as flags.
pub(crate) const ON_RECIPES: [&str; 10] =
    ["run", "check", "build", "profile", "verify", "generate", "chat", "apply", "export", "merge"];

/// What every command on a recipe takes.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) recipe: PathBuf,
    pub(crate) out: Option<PathBuf>,
    pub(crate) threads: Option<usize>,
    /// What to compute on, where that is said.
    pub(crate) device: Option<Device>,
    pub(crate) seed: Option<u64>,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
    /// The recipe's `arg`s that were given, as text.
    pub(crate) given: Vec<(String, String)>,
}

fn flag(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// How a program that only reads weights keeps them.
fn weights() -> Arg {
    let parse = |text: &str| Kept::from_name(text).ok_or_else(|| "not one of f32, bf16, int8".to_string());
    flag("weights", "AS", "How matrices are kept, f32, bf16 or int8: the fewer bytes, the sooner a token is written")
        .value_parser(parse)
        .default_value(Kept::F32.name())
}

/// A command that writes with a model, `new` tokens at most.
fn writing(command: Command, new: &'static str) -> Command {
    command
        .arg(flag("stage", "NAME", "The trained stage [default: the last one that trains]"))
        .arg(switch("greedy", "Takes the most likely token always"))
        .arg(flag("new", "N", "How many tokens to write").value_parser(value_parser!(u64)).default_value(new))
        .arg(
            flag("room", "N", "How many tokens a folder's model sees at once [default: what is needed, or all it can]")
                .value_parser(value_parser!(u64).range(1..=1 << 20)),
        )
        .arg(weights())
        .arg(
            flag("temperature", "T", "0 takes the most likely token always")
                .value_parser(|text: &str| number(text, "at least 0", |value| value >= 0.0 && value.is_finite()))
                .allow_negative_numbers(true)
                .default_value("0.8"),
        )
        .arg(
            flag("top-k", "K", "Only the K most likely tokens; 0 for all")
                .value_parser(value_parser!(u64))
                .default_value("0"),
        )
        .arg(
            flag("top-p", "P", "Only the most likely tokens that have probability P together")
                .value_parser(|text: &str| number(text, "above 0 and at most 1", |value| value > 0.0 && value <= 1.0))
                .allow_negative_numbers(true)
                .default_value("1.0"),
        )
        .arg(flag("draft", "STAGE|DIR", "A smaller model that proposes tokens: what is written stays as likely"))
        .arg(
            flag("ahead", "N", "How many tokens the draft proposes at once")
                .value_parser(value_parser!(u64).range(1..=64))
                .default_value("4")
                .requires("draft"),
        )
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn color() -> Arg {
    flag("color", "WHEN", "Colour in messages")
        .value_parser(PossibleValuesParser::new(["auto", "always", "never"]))
        .default_value("auto")
        .global(true)
}

fn on_recipe(command: Command, recipe_args: &[spec::Arg]) -> Command {
    let mut command = command
        .arg(Arg::new("RECIPE").required(true).value_parser(value_parser!(PathBuf)).help("The .mdl file"))
        .arg(
            flag("out", "DIR", "Where artifacts go [default: runs/<recipe> beside the recipe]")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            flag("threads", "N", "Threads to compute with [default: all cores]")
                .value_parser(value_parser!(u64).range(1..=1024)),
        )
        .arg(
            flag("device", "NAME", "What to compute on: the processor, an NVIDIA card, or a card if there is one [default: the recipe's, or cpu]")
                .value_parser(PossibleValuesParser::new(Device::NAMES)),
        )
        .arg(
            flag("seed", "N", "Replaces the seed of every training stage, and of what `generate` draws")
                .value_parser(value_parser!(u64)),
        )
        .arg(switch("quiet", "Only errors"))
        .arg(switch("json", "Output for programs: one JSON value a line"));
    for arg in recipe_args {
        let long = arg.name.replace('_', "-");
        let mut help = arg.doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_string();
        if let Some(default) = &arg.default {
            help.push_str(&format!("{}[default: {default}]", if help.is_empty() { "" } else { " " }));
        }
        let mut flag = Arg::new(format!("arg:{}", arg.name)).long(long.clone()).value_name(arg.ty.clone()).help(help);
        flag = flag.help_heading("Arguments of the recipe");
        if long != arg.name {
            flag = flag.alias(arg.name.clone());
        }
        command = command.arg(flag.allow_hyphen_values(true));
    }
    command
}

/// The whole command line. `recipe_args` are those of the recipe that the command names, when it could be read.
pub(crate) fn command(recipe_args: &[spec::Arg]) -> Command {
    let run = on_recipe(Command::new("run").about("Runs the stages of a recipe that are not up to date"), recipe_args);
    let check = on_recipe(
        Command::new("check").about("Checks a recipe, and prints parameters, cost and memory of each stage"),
        recipe_args,
    );
    let build = on_recipe(Command::new("build").about("Prints what the compiler makes of a recipe"), recipe_args)
        .arg(
            flag("emit", "WHAT", "What to print")
                .value_parser(PossibleValuesParser::new(crate::command::build::EMITS))
                .default_value("plan"),
        )
        .arg(flag("stage", "NAME", "The stage to print [default: the first that trains]"))
        .arg(
            flag("arch", "N", "The cards that ptx and sass are for: 80 is Ampere, 90 Hopper")
                .value_parser(value_parser!(u32).range(80..=129))
                .default_value("90"),
        )
        .arg(flag("dump-after", "PASS", "Prints the graph after this pass instead"));
    let profile = on_recipe(
        Command::new("profile")
            .about("Times every kernel of a training step, or of writing a token, against what this machine can do"),
        recipe_args,
    )
    .arg(flag("stage", "NAME", "The stage to measure [default: the first that trains]"))
    .arg(
        flag("measure", "N", "Steps, or tokens, to measure; the median one is shown")
            .value_parser(value_parser!(u64).range(1..))
            .default_value("5"),
    )
    .arg(switch("decode", "Measures writing a token, in the middle of a text"))
    .arg(weights().requires("decode"))
    .arg(flag("trace", "FILE", "Writes that step as a Chrome trace, which Perfetto opens"));
    let verify = on_recipe(
        Command::new("verify").about(
            "Tests that a step has the same loss and gradients in pieces, recomputing, on other threads, unpacked",
        ),
        recipe_args,
    )
    .arg(flag("stage", "NAME", "The stage to test [default: all that train]"));
    let generate = writing(
        on_recipe(
            Command::new("generate").about("Writes text with a trained stage or the model of a folder"),
            recipe_args,
        ),
        "200",
    )
    .arg(flag("prompt", "TEXT", "What the text begins with").required_unless_present("ids"))
    .arg(
        flag("ids", "FILE", "An .npz with rows of `input_ids` to go on from, instead of a text")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all(["prompt", "stage", "draft", "room"]),
    )
    .arg(
        flag("outputs", "FILE", "Where the ids are written, an .npz with `sequences` [default: as JSON]")
            .value_parser(value_parser!(PathBuf))
            .requires("ids"),
    );
    let chat = writing(
        on_recipe(
            Command::new("chat").about("Talks with a trained stage or the model of a folder, a line at a time"),
            recipe_args,
        ),
        "512",
    )
    .arg(flag("system", "TEXT", "What the system says before all else"))
    .arg(flag("stop", "TEXT", "Ends an answer before this text; may be given several times").action(ArgAction::Append));
    let adapter = || {
        flag("adapter", "DIR", "A folder in which PEFT has saved an adapter, around the model")
            .value_parser(value_parser!(PathBuf))
    };
    let apply = on_recipe(
        Command::new("apply").about("Runs a model on NumPy arrays: a recipe's, or that of a folder with config.json"),
        recipe_args,
    )
    .arg(flag("stage", "NAME", "The trained stage or model [default: the last]"))
    .arg(adapter())
    .arg(
        flag("inputs", "FILE", "An .npz of arrays under the names of the model's arguments")
            .value_parser(value_parser!(PathBuf))
            .required(true),
    )
    .arg(
        flag("outputs", "FILE", "Where what the model returns is written, an .npz")
            .value_parser(value_parser!(PathBuf))
            .required_unless_present("loss"),
    )
    .arg(switch("loss", "Prints the loss and the norm of its gradient for each weight, as JSON"));
    let export = on_recipe(
        Command::new("export")
            .about("Writes the folder that a trained stage was loaded from, with what it has learned; of adapters as PEFT keeps them"),
        recipe_args,
    )
    .arg(flag("stage", "NAME", "The trained stage [default: the last one that trains]"))
    .arg(
        flag("to", "DIR", "The folder to make; nothing of that name may be there")
            .value_parser(value_parser!(PathBuf))
            .required(true),
    );
    let merge = on_recipe(
        Command::new("merge").about(
            "Folds the adapters of a trained stage, or of a folder with an adapter, into the folder of their model; says how far logits move",
        ),
        recipe_args,
    )
    .arg(flag("stage", "NAME", "The trained stage [default: the last one that trains]"))
    .arg(adapter())
    .arg(
        flag("to", "DIR", "The folder to make; nothing of that name may be there")
            .value_parser(value_parser!(PathBuf))
            .required(true),
    );
    let tune = on_recipe(
        Command::new("tune")
            .about("Makes training steps on one batch of arrays with the model of a folder, and exports the result"),
        recipe_args,
    )
    .arg(
        flag("inputs", "FILE", "An .npz of arrays under the names of the model's arguments, labels among them")
            .value_parser(value_parser!(PathBuf))
            .required(true),
    )
    .arg(adapter())
    .arg(flag("optimizer", "EXPR", "Such as 'adamw(lr: 1e-3, decay: 0.0)'").required(true))
    .arg(flag("steps", "N", "How many steps").value_parser(value_parser!(u64).range(1..)).required(true));
    let import = on_recipe(
        Command::new("import").about("Writes the recipe of a folder with config.json, or says what in it is not known"),
        recipe_args,
    )
    .arg(flag("to", "FILE", "Where it is written [default: standard output]").value_parser(value_parser!(PathBuf)));
    let fmt = Command::new("fmt")
        .about("Formats recipes in place")
        .arg(Arg::new("FILES").required(true).num_args(1..).value_parser(value_parser!(PathBuf)).help("The .mdl files"))
        .arg(switch("check", "Changes nothing; says which files would change, and ends with 1 if any"));
    let explain = Command::new("explain")
        .about("Explains an error code, with a wrong and a right example; or a kind of block, field by field")
        .arg(Arg::new("WHAT").required(true).help("Such as E0204, or train"));
    Command::new("mdlc")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Compiles and runs .mdl recipes: data, models, training, evaluation")
        .after_help("Exit codes: 0 done, 1 the recipe or its data is wrong, 2 wrong usage, 3 the run failed.")
        .arg(color())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            run, check, build, profile, verify, generate, chat, apply, export, merge, tune, import, fmt, explain,
        ])
}

/// The recipe that a command line names: the first word after the command that is no flag and no flag's value.
pub(crate) fn find_recipe(command: &Command, words: &[OsString]) -> Option<PathBuf> {
    let own = command.get_subcommands().filter(|command| ON_RECIPES.contains(&command.get_name()));
    let all = command.get_arguments().chain(own.flat_map(Command::get_arguments));
    let valued: Vec<&str> =
        all.filter(|arg| arg.get_action().takes_values()).filter_map(|arg| arg.get_long()).collect();
    let mut words = words.iter().skip(1).map(|word| word.to_string_lossy());
    words.by_ref().find(|word| ON_RECIPES.contains(&word.as_ref()))?;
    let mut is_value = false;
    let mut file = None;
    for word in words {
        if let Some(flag) = word.strip_prefix("--") {
            is_value = valued.contains(&flag);
        } else if std::mem::take(&mut is_value) {
            continue;
        } else if word.ends_with(".mdl") {
            return Some(PathBuf::from(word.as_ref()));
        } else if file.is_none() && Path::new(word.as_ref()).is_file() {
            // A recipe of another name, unless it is the value of a recipe's own flag, which only the recipe tells.
            file = Some(PathBuf::from(word.as_ref()));
        }
    }
    file
}

impl Common {
    /// What a recipe's stages run on.
    pub(crate) fn device(&self, program: &spec::Program) -> Device {
        self.device.unwrap_or(program.device)
    }

    pub(crate) fn of(matches: &ArgMatches, recipe_args: &[spec::Arg]) -> Common {
        let given = recipe_args.iter().filter_map(|arg| {
            let value = matches.get_one::<String>(&format!("arg:{}", arg.name))?;
            // In the recipe a path is relative to the recipe; on the command line, to where the user is.
            let value = match (arg.ty.as_str(), std::env::current_dir()) {
                ("Path", Ok(here)) => here.join(value).to_string_lossy().into_owned(),
                _ => value.clone(),
            };
            Some((arg.name.clone(), value))
        });
        Common {
            recipe: matches.get_one::<PathBuf>("RECIPE").cloned().unwrap_or_default(),
            out: matches.get_one::<PathBuf>("out").cloned(),
            threads: matches.get_one::<u64>("threads").map(|threads| *threads as usize),
            device: matches.get_one::<String>("device").and_then(|name| Device::of(name)),
            seed: matches.get_one::<u64>("seed").copied(),
            quiet: matches.get_flag("quiet"),
            json: matches.get_flag("json"),
            given: given.collect(),
        }
    }

    /// The recipe's folder.
    pub(crate) fn base(&self) -> PathBuf {
        match self.recipe.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        }
    }

    pub(crate) fn out(&self) -> PathBuf {
        let stem = self.recipe.file_stem().unwrap_or_default();
        self.out.clone().unwrap_or_else(|| self.base().join("runs").join(stem))
    }
}

/// A number of a range that is told when it is left.
fn number(text: &str, range: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|value| fits(*value)).ok_or_else(|| format!("it takes a number {range}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_recipe_is_found_wherever_it_stands() {
        let found =
            |text: &str| find_recipe(&command(&[]), &words(text)).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(found("mdlc run a.mdl --steps 3"), Some("a.mdl".into()));
        assert_eq!(found("mdlc run --out x.mdl a.mdl"), Some("a.mdl".into()));
        assert_eq!(found("mdlc --color never check a.mdl"), Some("a.mdl".into()));
        // A file that is there is not taken for the recipe where one follows.
        assert_eq!(found("mdlc run --text Cargo.toml a.mdl"), Some("a.mdl".into()));
        assert_eq!(found("mdlc run Cargo.toml"), Some("Cargo.toml".into()));
        assert_eq!(found("mdlc explain E0204"), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        let arg = spec::Arg {
            name: "n_steps".into(),
            ty: "Int".into(),
            doc: "How many steps.".into(),
            default: Some("5".into()),
            value: None,
        };
        command(std::slice::from_ref(&arg)).debug_assert();
        let matches = command(&[arg]).try_get_matches_from(words("mdlc run a.mdl --n-steps 7")).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        assert_eq!(matches.get_one::<String>("arg:n_steps").map(String::as_str), Some("7"));
    }
}
