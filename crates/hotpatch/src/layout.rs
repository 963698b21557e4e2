//! Types and functions as debug information (DWARF) has them: where each field of a type is, and how a function is called.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use gimli::{AttributeValue, EndianSlice, LittleEndian};
use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader, Sym};

use crate::error::{Error, Result};
use crate::refusal::{Kind, Refusal};
use crate::unit::Unit;

/// Types are followed no deeper: nobody nests them so, and a hostile file could make them circular.
const DEPTH: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    /// From the beginning of the type; of a variant the number that says that a value is of it.
    bits: u64,
    size_bits: u64,
    /// What a value is of such a type (Rust's enums), not a place in it.
    is_variant: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    size: u64,
    fields: Vec<Field>,
}

/// What an object's debug information says.
#[derive(Debug, Default)]
pub struct Types {
    layouts: BTreeMap<String, Layout>,
    /// By function: how it is called, as far as a caller must know.
    signatures: BTreeMap<String, String>,
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

struct Node {
    tag: gimli::DwTag,
    name: Option<String>,
    kind: Option<usize>,
    size: Option<u64>,
    member_bits: Option<u64>,
    bit_size: Option<u64>,
    encoding: Option<u64>,
    count: Option<u64>,
    is_declaration: bool,
    /// Of a variant: by which number it is known.
    variant: Option<u64>,
    parent: Option<usize>,
    children: Vec<usize>,
}

/// The name of a type with those of what it is declared in (namespaces, modules, other types): several may have one name.
fn full_name(nodes: &[Node], index: usize) -> Option<String> {
    let mut name = nodes[index].name.clone()?;
    let mut at = nodes[index].parent;
    for _ in 0..DEPTH {
        let Some(outer) = at.map(|at| &nodes[at]) else { break };
        if outer.tag == gimli::DW_TAG_namespace || is_compound(outer.tag) {
            name = format!("{}::{name}", outer.name.as_deref().unwrap_or("(unnamed)"));
        }
        at = outer.parent;
    }
    Some(name)
}

impl Types {
    /// `None` if the object has no debug information (assembly).
    pub fn parse(unit: &Unit) -> Result<Option<Self>> {
        let malformed = |why: &dyn ToString| {
            Error::malformed(format!("debug information of {}", unit.name), why.to_string())
        };
        let file = ElfFile64::<Endianness>::parse(unit.raw.as_slice()).map_err(|e| malformed(&e))?;
        let sections = relocated(&file, &unit.raw, |_| 0).map_err(|e| malformed(&e))?;
        if !sections.contains_key(".debug_info") {
            return Ok(None);
        }
        let owned = gimli::DwarfSections::load(|id| {
            Ok::<_, gimli::Error>(sections.get(id.name()).cloned().unwrap_or_default())
        })
        .map_err(|e| malformed(&e))?;
        let dwarf = owned.borrow(|section: &Cow<'_, [u8]>| EndianSlice::new(section, LittleEndian));
        let mut types = Self::default();
        let mut headers = dwarf.units();
        while let Some(header) = headers.next().map_err(|e| malformed(&e))? {
            let one = dwarf.unit(header).map_err(|e| malformed(&e))?;
            let nodes = nodes(&dwarf, &one).map_err(|e| malformed(&e))?;
            types.take(&nodes);
        }
        Ok(Some(types))
    }

    fn take(&mut self, nodes: &[Node]) {
        for (index, node) in nodes.iter().enumerate() {
            match node.tag {
                gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type | gimli::DW_TAG_union_type => {
                    if let (Some(name), false) = (full_name(nodes, index), node.is_declaration) {
                        let word = if node.tag == gimli::DW_TAG_union_type { "union" } else { "struct" };
                        self.layouts.insert(format!("{word} {name}"), layout(nodes, node));
                    }
                }
                gimli::DW_TAG_typedef => {
                    // A type that has only this name.
                    if let (Some(name), Some(kind)) = (full_name(nodes, index), node.kind)
                        && is_compound(nodes[kind].tag)
                        && nodes[kind].name.is_none()
                    {
                        self.layouts.insert(name, layout(nodes, &nodes[kind]));
                    }
                }
                gimli::DW_TAG_subprogram => {
                    if let (Some(name), false) = (&node.name, node.is_declaration) {
                        self.signatures.insert(name.clone(), signature(nodes, node));
                    }
                }
                _ => {}
            }
        }
    }

    /// Types of both that are laid out differently, with the first field that shows it.
    pub fn moved(&self, new: &Self) -> Vec<Refusal> {
        let mut found = Vec::new();
        for (name, old) in &self.layouts {
            let Some(now) = new.layouts.get(name) else { continue };
            if let Some(why) = old.difference(now) {
                found.push(Refusal::new(Kind::Layout, name, why));
            }
        }
        found
    }

    /// Whether a function of both is called differently.
    pub fn signature_change(&self, new: &Self, function: &str) -> Option<String> {
        let (old, now) = (self.signatures.get(function)?, new.signatures.get(function)?);
        (old != now).then(|| format!("it was called as {old} and is called as {now}"))
    }
}

impl Layout {
    fn difference(&self, new: &Self) -> Option<String> {
        let places = |layout: &Self| layout.fields.iter().map(|f| (f.bits, f.size_bits)).collect::<Vec<_>>();
        if self.size == new.size && places(self) == places(new) {
            return None;
        }
        for old in &self.fields {
            match new.fields.iter().find(|field| field.name == old.name && field.is_variant == old.is_variant)
            {
                Some(field) if field.is_variant && field.bits != old.bits => {
                    return Some(format!(
                        "its variant {} had the number {} and has {}",
                        old.name, old.bits, field.bits
                    ));
                }
                Some(field) if field.bits != old.bits => {
                    let (was, is) = (place(old.bits), place(field.bits));
                    return Some(format!("its field {} was at offset {was} and is at {is}", old.name));
                }
                Some(field) if field.size_bits != old.size_bits => {
                    let (was, is) = (place(old.size_bits), place(field.size_bits));
                    return Some(format!("its field {} had {was} bytes and has {is}", old.name));
                }
                Some(_) => {}
                None if old.is_variant => return Some(format!("its variant {} is gone", old.name)),
                None => return Some(format!("its field {} at offset {} is gone", old.name, place(old.bits))),
            }
        }
        for field in &new.fields {
            if !self.fields.iter().any(|old| old.name == field.name && old.is_variant == field.is_variant) {
                if field.is_variant {
                    return Some(format!("its variant {} is new", field.name));
                }
                return Some(format!("its field {} at offset {} is new", field.name, place(field.bits)));
            }
        }
        Some(format!("it had {} bytes and has {}", self.size, new.size))
    }
}

/// A number of bits in bytes.
fn place(bits: u64) -> String {
    if bits.is_multiple_of(8) { (bits / 8).to_string() } else { format!("{}.{}", bits / 8, bits % 8) }
}

fn is_compound(tag: gimli::DwTag) -> bool {
    [gimli::DW_TAG_structure_type, gimli::DW_TAG_class_type, gimli::DW_TAG_union_type].contains(&tag)
}

fn layout(nodes: &[Node], node: &Node) -> Layout {
    let mut fields = Vec::new();
    take_fields(nodes, node, 0, 0, &mut fields);
    Layout { size: node.size.unwrap_or(0), fields }
}

/// Fields, with those of unnamed members in their places.
fn take_fields(nodes: &[Node], node: &Node, base: u64, depth: usize, fields: &mut Vec<Field>) {
    if depth > DEPTH {
        return;
    }
    for child in &node.children {
        let child = &nodes[*child];
        if child.tag == gimli::DW_TAG_variant_part {
            take_variants(nodes, child, base, depth + 1, fields);
            continue;
        }
        if child.tag != gimli::DW_TAG_member && child.tag != gimli::DW_TAG_inheritance {
            continue;
        }
        let bits = base + child.member_bits.unwrap_or(0);
        let kind = child.kind.map(|kind| &nodes[kind]);
        if child.name.is_none()
            && let Some(inner) = kind
            && is_compound(inner.tag)
            && inner.name.is_none()
        {
            take_fields(nodes, inner, bits, depth + 1, fields);
            continue;
        }
        let size_bits =
            child.bit_size.unwrap_or_else(|| child.kind.map_or(0, |kind| size_of_type(nodes, kind, 0) * 8));
        fields.push(Field {
            name: child.name.clone().unwrap_or_default(),
            bits,
            size_bits,
            is_variant: false,
        });
    }
}

/// Where the number is by which a variant is known, and the number of each: the fields of a variant are a type of their own.
fn take_variants(nodes: &[Node], part: &Node, base: u64, depth: usize, fields: &mut Vec<Field>) {
    take_fields(nodes, part, base, depth, fields);
    for variant in
        part.children.iter().map(|child| &nodes[*child]).filter(|child| child.tag == gimli::DW_TAG_variant)
    {
        let member = variant.children.iter().find_map(|member| nodes[*member].name.clone());
        // The one that all other numbers mean has none.
        let bits = variant.variant.unwrap_or(u64::MAX);
        fields.push(Field { name: member.unwrap_or_default(), bits, size_bits: 0, is_variant: true });
    }
}

fn size_of_type(nodes: &[Node], kind: usize, depth: usize) -> u64 {
    let node = &nodes[kind];
    if let Some(size) = node.size {
        return size;
    }
    if depth > DEPTH {
        return 0;
    }
    let inner = || node.kind.map_or(0, |kind| size_of_type(nodes, kind, depth + 1));
    match node.tag {
        gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type => 8,
        gimli::DW_TAG_array_type => {
            let counts = node.children.iter().map(|child| nodes[*child].count.unwrap_or(0));
            counts.fold(inner(), u64::saturating_mul)
        }
        _ => inner(),
    }
}

fn signature(nodes: &[Node], node: &Node) -> String {
    let mut parameters = Vec::new();
    for child in &node.children {
        match nodes[*child].tag {
            gimli::DW_TAG_formal_parameter => {
                parameters.push(nodes[*child].kind.map_or("?".to_owned(), |kind| class(nodes, kind, 0)));
            }
            gimli::DW_TAG_unspecified_parameters => parameters.push("...".to_owned()),
            _ => {}
        }
    }
    let result = node.kind.map_or("void".to_owned(), |kind| class(nodes, kind, 0));
    format!("{result}({})", parameters.join(", "))
}

/// How a value of a type is passed, as far as it matters (System V ABI, x86-64, 3.2.3).
fn class(nodes: &[Node], kind: usize, depth: usize) -> String {
    let node = &nodes[kind];
    match node.tag {
        gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type => {
            "pointer".to_owned()
        }
        gimli::DW_TAG_base_type => {
            let word = match gimli::DwAte(node.encoding.unwrap_or(0) as u8) {
                gimli::DW_ATE_float => "float",
                gimli::DW_ATE_boolean => "bool",
                gimli::DW_ATE_unsigned | gimli::DW_ATE_unsigned_char => "unsigned",
                _ => "int",
            };
            format!("{word}{}", node.size.unwrap_or(0) * 8)
        }
        gimli::DW_TAG_enumeration_type => format!("enum{}", node.size.unwrap_or(0) * 8),
        tag if is_compound(tag) => {
            format!("struct {}[{}]", node.name.as_deref().unwrap_or(""), node.size.unwrap_or(0))
        }
        _ if depth < DEPTH => node.kind.map_or("void".to_owned(), |kind| class(nodes, kind, depth + 1)),
        _ => "?".to_owned(),
    }
}

fn nodes(dwarf: &gimli::Dwarf<Slice<'_>>, unit: &gimli::Unit<Slice<'_>>) -> gimli::Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut by_offset = HashMap::new();
    let mut kinds = Vec::new();
    let mut parents: Vec<(isize, usize)> = Vec::new();
    let mut entries = unit.entries();
    while let Some(entry) = entries.next_dfs()? {
        let number = |name| entry.attr_value(name).and_then(|value| value.udata_value());
        let name = match entry.attr_value(gimli::DW_AT_name) {
            Some(value) => Some(dwarf.attr_string(unit, value)?.to_string_lossy().into_owned()),
            None => None,
        };
        let member_bits =
            match (number(gimli::DW_AT_data_bit_offset), number(gimli::DW_AT_data_member_location)) {
                (Some(bits), _) => Some(bits),
                (None, bytes) => bytes.map(|bytes| bytes.saturating_mul(8)),
            };
        let count = number(gimli::DW_AT_count)
            .or_else(|| number(gimli::DW_AT_upper_bound).map(|last| last.wrapping_add(1)));
        let index = nodes.len();
        by_offset.insert(entry.offset(), index);
        if let Some(AttributeValue::UnitRef(offset)) = entry.attr_value(gimli::DW_AT_type) {
            kinds.push((index, offset));
        }
        while parents.last().is_some_and(|(depth, _)| *depth >= entry.depth()) {
            parents.pop();
        }
        let parent = parents.last().map(|(_, parent)| *parent);
        if let Some(parent) = parent {
            nodes[parent].children.push(index);
        }
        parents.push((entry.depth(), index));
        nodes.push(Node {
            tag: entry.tag(),
            name,
            kind: None,
            size: number(gimli::DW_AT_byte_size),
            member_bits,
            bit_size: number(gimli::DW_AT_bit_size),
            encoding: match entry.attr_value(gimli::DW_AT_encoding) {
                Some(AttributeValue::Encoding(encoding)) => Some(u64::from(encoding.0)),
                _ => None,
            },
            count,
            is_declaration: entry.has_attr(gimli::DW_AT_declaration),
            variant: number(gimli::DW_AT_discr_value),
            parent,
            children: Vec::new(),
        });
    }
    for (index, offset) in kinds {
        nodes[index].kind = by_offset.get(&offset).copied();
    }
    Ok(nodes)
}

/// The debug sections with their relocations applied: in an object file all addresses are 0, so what matters are the
/// distances into other debug sections.
pub(crate) fn relocated<'a>(
    file: &ElfFile64<'a, Endianness>,
    raw: &'a [u8],
    base: impl Fn(usize) -> u64,
) -> object::Result<HashMap<String, Cow<'a, [u8]>>> {
    let endian = Endianness::Little;
    let sections = file.elf_section_table();
    let symbols = file.elf_symbol_table();
    let mut found = HashMap::new();
    let mut names = HashMap::new();
    for (index, section) in sections.enumerate() {
        let name = String::from_utf8_lossy(sections.section_name(endian, section)?).into_owned();
        if name.starts_with(".debug_") {
            names.insert(index.0, name.clone());
            found.insert(name, Cow::Borrowed(section.data(endian, raw)?));
        }
    }
    for (_, section) in sections.enumerate() {
        let Some((entries, _)) = section.rela(endian, raw)? else { continue };
        let Some(target) =
            names.get(&(section.sh_info(endian) as usize)).and_then(|name| found.get_mut(name))
        else {
            continue;
        };
        let bytes = target.to_mut();
        for entry in entries {
            let index = entry.r_sym(endian, false) as usize;
            let value =
                symbols.symbol(object::SymbolIndex(index))?.st_value(endian).wrapping_add(base(index));
            let value = value.wrapping_add_signed(entry.r_addend.get(endian)).to_le_bytes();
            let width = match entry.r_type(endian, false) {
                elf::R_X86_64_64 => 8,
                elf::R_X86_64_32 => 4,
                _ => continue,
            };
            let at = entry.r_offset.get(endian) as usize;
            if let Some(field) = bytes.get_mut(at..at.saturating_add(width)) {
                field.copy_from_slice(&value[..width]);
            }
        }
    }
    Ok(found)
}
