//! Replicated structs and statics as the macros describe them.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use outlive_replicated::dynamic::{FieldType, Kind, Of, RecordType, Sequence, Table, Variable, may_declare};
use outlive_replicated::{Counter, Handle, Map, Root, Text};
use parking_lot::Mutex;

use crate::blob::Blob;
use crate::code::{Code, Failure, all_words, code, outlive_code, text};
use crate::function::Opened;

/// What a field of a replicated struct holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_kind {
    /// After the last field.
    OUTLIVE_END = 0,
    /// An unsigned integer of 1, 2, 4 or 8 bytes.
    OUTLIVE_UNSIGNED = 1,
    /// A signed integer of 1, 2, 4 or 8 bytes.
    OUTLIVE_SIGNED = 2,
    /// `float` or `double`.
    OUTLIVE_FLOATING = 3,
    /// `bool`.
    OUTLIVE_BOOLEAN = 4,
    /// A text in an array of `char`, up to its first zero.
    OUTLIVE_CHARS = 5,
    /// An array of bytes, all of it.
    OUTLIVE_OCTETS = 6,
    /// Another replicated struct.
    OUTLIVE_NESTED = 7,
}

/// A field of a replicated struct, as `OUTLIVE_STRUCT` describes it.
#[repr(C)]
pub struct outlive_field {
    /// Its name.
    pub name: *const c_char,
    /// An `outlive_kind`.
    pub kind: u32,
    /// Whether it is zero where the primary has none.
    pub added: u32,
    /// Where it lies in the struct.
    pub offset: usize,
    /// How many bytes one of it has.
    pub size: usize,
    /// How many of it there are; 0 if it is no array.
    pub count: usize,
    /// The struct that it is, for `OUTLIVE_NESTED`.
    pub nested: Option<unsafe extern "C" fn() -> *const outlive_type>,
    /// An earlier name of it, or NULL.
    pub was: *const c_char,
}

/// A replicated struct, as `OUTLIVE_STRUCT` describes it.
#[repr(C)]
pub struct outlive_type {
    /// Its tag.
    pub name: *const c_char,
    /// How many bytes it has.
    pub size: usize,
    /// At multiples of how many bytes it lies.
    pub alignment: usize,
    /// Its fields, and after the last one `OUTLIVE_END`.
    pub fields: *const outlive_field,
}

/// What a replicated static is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_form {
    /// One struct.
    OUTLIVE_FORM_VARIABLE = 0,
    /// From keys to structs, or to bytes.
    OUTLIVE_FORM_MAP = 1,
    /// Structs, or bytes, in a row.
    OUTLIVE_FORM_LIST = 2,
    /// A number that is added to.
    OUTLIVE_FORM_COUNTER = 3,
    /// A long text.
    OUTLIVE_FORM_TEXT = 4,
    /// From keys to what replicated functions opened.
    OUTLIVE_FORM_HANDLES = 5,
}

/// A replicated static, as the macros declare it. It is the library's from its registration on: do not change it.
#[repr(C)]
pub struct outlive_static {
    /// Its name, the same in every version of the program.
    pub name: *const c_char,
    /// An `outlive_form`.
    pub form: u32,
    /// The struct that it consists of; NULL for bytes, and where there is none.
    pub of: Option<unsafe extern "C" fn() -> *const outlive_type>,
    /// The library's.
    pub object: *mut c_void,
}

/// A static, once it is declared.
pub enum Object {
    Variable(Variable),
    Map(Table),
    List(Sequence),
    Counter(Root<Counter>),
    Text(Root<Text>),
    Handles(Root<Map<Blob, Handle<Opened>>>),
}

/// A static by its name, for as long as the process lives.
pub struct Static {
    pub name: &'static str,
    pub object: Object,
}

/// How deep structs may lie within structs: more is a struct that contains itself.
const DEPTH: usize = 16;

/// The first declaration that failed: said when the program starts.
static FAILED: Mutex<Option<Failure>> = Mutex::new(None);
/// Names of statics that the library of Rust does not compare.
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub fn failed_declaration() -> Option<Failure> {
    FAILED.lock().clone()
}

/// Keeps the first failure of a declaration, which nobody looks at where it is made.
pub fn keep_failure(outcome: Result<Code, Failure>) -> Result<Code, Failure> {
    outcome.inspect_err(|failure| {
        FAILED.lock().get_or_insert_with(|| failure.clone());
    })
}

/// # Safety
/// `of` is what `OUTLIVE_STRUCT` has made.
unsafe fn record_type(
    of: unsafe extern "C" fn() -> *const outlive_type,
    depth: usize,
) -> Result<Arc<RecordType>, Failure> {
    let bad = |words: String| Failure::new(Code::OUTLIVE_BAD_DECLARATION, words);
    // SAFETY: it takes nothing and returns the address of a static.
    let described = unsafe { of() };
    // SAFETY: such a static is never changed, and NULL is looked for.
    let described = unsafe { described.as_ref() }.ok_or_else(|| bad("a struct is not described".into()))?;
    // SAFETY: its strings are literals.
    let name = unsafe { text(described.name, "the name of a struct") }?;
    if depth > DEPTH || described.fields.is_null() {
        return Err(bad(format!("struct `{name}` is nested too deeply, or has no fields")));
    }
    let mut fields = Vec::new();
    let mut next = described.fields;
    loop {
        // SAFETY: the fields are an array that ends with `OUTLIVE_END`, after which nothing is read.
        let field = unsafe { &*next };
        if field.kind == outlive_kind::OUTLIVE_END as u32 {
            break;
        }
        // SAFETY: as above, there is at least the end behind it.
        next = unsafe { next.add(1) };
        // SAFETY: literals.
        let field_name = unsafe { text(field.name, "the name of a field") }?;
        const UNSIGNED: u32 = outlive_kind::OUTLIVE_UNSIGNED as u32;
        const SIGNED: u32 = outlive_kind::OUTLIVE_SIGNED as u32;
        const FLOATING: u32 = outlive_kind::OUTLIVE_FLOATING as u32;
        const BOOLEAN: u32 = outlive_kind::OUTLIVE_BOOLEAN as u32;
        const CHARS: u32 = outlive_kind::OUTLIVE_CHARS as u32;
        const OCTETS: u32 = outlive_kind::OUTLIVE_OCTETS as u32;
        const NESTED: u32 = outlive_kind::OUTLIVE_NESTED as u32;
        let kind = match (field.kind, field.nested) {
            (UNSIGNED, _) => Kind::Unsigned(field.size),
            (SIGNED, _) => Kind::Signed(field.size),
            (FLOATING, _) => Kind::Float(field.size),
            (BOOLEAN, _) if field.size == 1 => Kind::Bool,
            (CHARS, _) => Kind::Chars(field.size),
            (OCTETS, _) => Kind::Bytes(field.size),
            // SAFETY: it is of another description, as this one's maker says.
            (NESTED, Some(of)) => Kind::Record(unsafe { record_type(of, depth + 1) }?),
            _ => return Err(bad(format!("field `{field_name}` of struct `{name}` is of no kind"))),
        };
        fields.push(FieldType {
            name: field_name.to_owned(),
            offset: field.offset,
            kind,
            count: (field.count > 0).then_some(field.count),
            has_default: field.added != 0,
            // SAFETY: a literal or NULL.
            was: unsafe { crate::code::optional_text(field.was, "an earlier name") }?.map(str::to_owned),
        });
    }
    Ok(RecordType::new(name, described.size, described.alignment, fields)?)
}

/// Makes a replicated static known. The macros call it before `main`; what went wrong is said by `outlive_start`.
///
/// # Safety
/// `it` is what one of the macros has declared, and lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_register(it: *mut outlive_static) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        keep_failure(unsafe { register(it) })
    })
}

/// # Safety
/// As for [`outlive_register`].
unsafe fn register(it: *mut outlive_static) -> Result<Code, Failure> {
    // SAFETY: it is declared by a macro, and nobody else uses it before it is registered.
    let it = unsafe { it.as_mut() }.ok_or_else(|| Failure::misuse("no static is given"))?;
    // SAFETY: a literal.
    let name = unsafe { text(it.name, "the name of a static") }?;
    if !it.object.is_null() {
        return Err(Failure::new(Code::OUTLIVE_BAD_DECLARATION, format!("`{name}` is registered twice")));
    }
    {
        let mut names = NAMES.lock();
        if names.iter().any(|known| known == name) {
            let words = format!("two replicated statics are called `{name}`: give one of them another name");
            return Err(Failure::new(Code::OUTLIVE_BAD_DECLARATION, words));
        }
        names.push(name.to_owned());
    }
    // One for each declaration of the program: it lives as long as the process.
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let element = || match it.of {
        // SAFETY: made by `OUTLIVE_STRUCT`.
        Some(of) => unsafe { record_type(of, 0) }.map(Of::Record),
        None => Ok(Of::Bytes),
    };
    const VARIABLE: u32 = outlive_form::OUTLIVE_FORM_VARIABLE as u32;
    const MAP: u32 = outlive_form::OUTLIVE_FORM_MAP as u32;
    const LIST: u32 = outlive_form::OUTLIVE_FORM_LIST as u32;
    const COUNTER: u32 = outlive_form::OUTLIVE_FORM_COUNTER as u32;
    const TEXT: u32 = outlive_form::OUTLIVE_FORM_TEXT as u32;
    const HANDLES: u32 = outlive_form::OUTLIVE_FORM_HANDLES as u32;
    let object = match it.form {
        VARIABLE => match element()? {
            Of::Record(of) => Object::Variable(Variable::declare(name, &of)?),
            Of::Bytes => return Err(Failure::misuse(format!("variable `{name}` is of no struct"))),
        },
        MAP => Object::Map(Table::declare(name, element()?)?),
        LIST => Object::List(Sequence::declare(name, element()?)?),
        COUNTER => Object::Counter(Root::new(name, Counter::new)),
        TEXT => Object::Text(Root::new(name, Text::new)),
        HANDLES => Object::Handles(Root::new(name, Map::new)),
        other => {
            return Err(Failure::misuse(format!("`{name}` is of the form {other}, which does not exist")));
        }
    };
    // The others say so themselves.
    may_declare(name)?;
    match &object {
        Object::Counter(root) => root.register(),
        Object::Text(root) => root.register(),
        Object::Handles(root) => root.register(),
        Object::Variable(_) | Object::Map(_) | Object::List(_) => {}
    }
    it.object = Box::into_raw(Box::new(Static { name, object })).cast();
    Ok(Code::OUTLIVE_OK)
}

/// The static that C means.
///
/// # Safety
/// `it` is NULL or what one of the macros has declared.
pub unsafe fn declared(it: *const outlive_static) -> Result<&'static Static, Failure> {
    // SAFETY: as the caller promises; it does not change after its registration.
    let it = unsafe { it.as_ref() }.ok_or_else(|| Failure::misuse("no static is given"))?;
    // SAFETY: NULL, or what `register` has put there, which nobody frees.
    let known = unsafe { it.object.cast::<Static>().as_ref() };
    known.ok_or_else(|| {
        failed_declaration().unwrap_or_else(|| Failure::misuse("a static is used before it is registered"))
    })
}

/// What does not fit between versions, in words of C.
pub fn incompatible(error: &outlive_replicated::Incompatible) -> String {
    use outlive_replicated::Incompatible as I;
    match error {
        I::NoDefault { type_name, field } => format!(
            "field `{field}` of struct `{type_name}` is not on the primary: write `ADDED` instead of `FIELD`, and it begins as zero"
        ),
        other => all_words(other),
    }
}
