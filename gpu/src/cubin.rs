//! What a compiled program says of its functions: registers, stack, shared memory. Read from the ELF file itself.
//!
//! Sections `.nv.info` hold records (format, attribute, size, value): attribute 0x2f is registers and 0x11 the stack's frame, each a
//! pair of a symbol's number and a number. `.nv.shared.NAME` is as long as the function's shared memory. Seen in
//! NVRTC 13.0's output for sm_80 and sm_90, and equal to what `--ptxas-options=-v` tells.

use std::collections::BTreeMap;

/// What one function takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub function: String,
    pub registers: u32,
    /// Bytes of each thread's stack: arrays that did not become registers, and spilled ones.
    pub frame_bytes: u32,
    /// Bytes of shared memory for a block; a kibibyte of it is the system's on Hopper.
    pub shared_bytes: u64,
    pub code_bytes: u64,
}

struct Section {
    name: String,
    kind: u32,
    start: usize,
    size: usize,
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut word = [0u8; 8];
    word[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(word))
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

fn sections(file: &[u8]) -> Option<Vec<Section>> {
    if !file.starts_with(b"\x7fELF") {
        return None;
    }
    let (table, size) = (number(file, 0x28, 8)? as usize, number(file, 0x3a, 2)? as usize);
    let (count, names) = (number(file, 0x3c, 2)? as usize, number(file, 0x3e, 2)? as usize);
    let header = |at: usize| table.checked_add(at.checked_mul(size)?);
    let names = number(file, header(names)?.checked_add(0x18)?, 8)? as usize;
    let section = |at: usize| -> Option<Section> {
        let header = header(at)?;
        let name = text(file, names.checked_add(number(file, header, 4)? as usize)?)?;
        let kind = number(file, header + 4, 4)? as u32;
        let (start, size) = (number(file, header + 0x18, 8)? as usize, number(file, header + 0x20, 8)? as usize);
        Some(Section { name, kind, start, size })
    };
    (0..count).map(section).collect()
}

/// Of each function, in the order of their names. `None`: this is no such file.
pub fn resources(file: &[u8]) -> Option<Vec<Resources>> {
    /// What has no bytes in the file.
    const NOBITS: u32 = 8;
    let sections = sections(file)?;
    let find = |name: &str| sections.iter().find(|section| section.name == name);
    let bytes = |section: &Section| file.get(section.start..section.start.checked_add(section.size)?);
    let mut all: BTreeMap<String, Resources> = BTreeMap::new();
    for section in &sections {
        let entry = |all: &mut BTreeMap<String, Resources>, name: &str, set: &dyn Fn(&mut Resources)| {
            let own = all.entry(name.to_string()).or_default();
            own.function = name.to_string();
            set(own);
        };
        if let Some(name) = section.name.strip_prefix(".text.") {
            entry(&mut all, name, &|own| own.code_bytes = section.size as u64);
        }
        if let Some(name) =
            section.name.strip_prefix(".nv.shared.").filter(|_| section.kind == NOBITS || section.size > 0)
        {
            entry(&mut all, name, &|own| own.shared_bytes = section.size as u64);
        }
    }
    let symbols = bytes(find(".symtab")?)?;
    let names = find(".strtab")?.start;
    let symbol = |at: u64| text(file, names.checked_add(number(symbols, at as usize * 24, 4)? as usize)?);
    let info = bytes(find(".nv.info")?)?;
    let mut at = 0;
    while at + 4 <= info.len() {
        let (format, attribute) = (info[at], info[at + 1]);
        // Other formats keep their value in the two bytes of the size.
        let size = if format == 4 { number(info, at + 2, 2)? as usize } else { 0 };
        if format == 4 && size >= 8 && matches!(attribute, 0x2f | 0x11) {
            let value = number(info, at + 8, 4)? as u32;
            if let Some(own) = symbol(number(info, at + 4, 4)?).and_then(|name| all.get_mut(&name)) {
                if attribute == 0x2f { own.registers = value } else { own.frame_bytes = value }
            }
        }
        at += 4 + size;
    }
    // What the system reserves of shared memory is in a section of its own, and no function.
    all.retain(|_, own| own.code_bytes > 0);
    Some(all.into_values().collect())
}
