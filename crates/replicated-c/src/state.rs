//! Reading and changing replicated statics.

use std::ffi::{c_int, c_void};

use outlive_replicated::dynamic::{Element, Of, Sequence, Table, Variable};
use outlive_replicated::{Counter, Root, Text};

use crate::code::{Code, Failure, bytes, outlive_code, part};
use crate::describe::{Object, Static, declared, outlive_static};
use crate::guard::{Guard, end, hold, hold_bytes, may_begin};

/// Bytes of the program, lent to this library for a call; of this library, lent to the program.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct outlive_bytes {
    /// Where they are; may be NULL if there are none.
    pub data: *const c_void,
    /// How many there are.
    pub length: usize,
}

impl outlive_bytes {
    pub fn lent(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr().cast(), length: bytes.len() }
    }

    /// # Safety
    /// They can be read, and do not change while the result lives.
    pub unsafe fn get<'a>(self) -> Result<&'a [u8], Failure> {
        // SAFETY: as the caller promises.
        unsafe { bytes(self.data, self.length) }
    }
}

/// Bytes that this library has given away: `outlive_buffer_free` takes them back.
#[repr(C)]
pub struct outlive_buffer {
    /// Where they are; NULL if there are none.
    pub data: *mut c_void,
    /// How many there are.
    pub length: usize,
}

impl outlive_buffer {
    pub fn of(bytes: Box<[u8]>) -> Self {
        let length = bytes.len();
        match length {
            0 => Self { data: std::ptr::null_mut(), length },
            _ => Self { data: Box::into_raw(bytes).cast(), length },
        }
    }
}

/// Takes back what a buffer holds; the buffer is empty then. NULL, and an empty one, are nothing.
///
/// # Safety
/// `buffer` is NULL or was filled by this library and not given back since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_buffer_free(buffer: *mut outlive_buffer) {
    // SAFETY: as the caller promises.
    let Some(buffer) = (unsafe { buffer.as_mut() }) else { return };
    if !buffer.data.is_null() {
        let slice = std::ptr::slice_from_raw_parts_mut(buffer.data.cast::<u8>(), buffer.length);
        // SAFETY: made by `outlive_buffer::of` of a box of this length.
        drop(unsafe { Box::from_raw(slice) });
    }
    (buffer.data, buffer.length) = (std::ptr::null_mut(), 0);
}

/// Looks at an element: what `outlive_map_each` was given as `context`, the element's key, and the element. Returns 0 to go
/// on. Both are lent until it returns.
pub type outlive_visit_entry =
    Option<unsafe extern "C" fn(context: *mut c_void, key: outlive_bytes, element: outlive_bytes) -> c_int>;

/// Looks at an element: what `outlive_list_each` was given as `context`, and the element. Returns 0 to go on.
pub type outlive_visit_element =
    Option<unsafe extern "C" fn(context: *mut c_void, element: outlive_bytes) -> c_int>;

fn address(it: &'static Static) -> *const c_void {
    std::ptr::from_ref(it).cast()
}

fn wrong(it: &Static, what: &str) -> Failure {
    Failure::misuse(format!("`{}` is no {what}", it.name))
}

fn variable(it: &'static Static) -> Result<&'static Variable, Failure> {
    if let Object::Variable(it) = &it.object { Ok(it) } else { Err(wrong(it, "variable")) }
}

fn map(it: &'static Static) -> Result<&'static Table, Failure> {
    if let Object::Map(it) = &it.object { Ok(it) } else { Err(wrong(it, "map")) }
}

fn list(it: &'static Static) -> Result<&'static Sequence, Failure> {
    if let Object::List(it) = &it.object { Ok(it) } else { Err(wrong(it, "list")) }
}

fn counter(it: &'static Static) -> Result<&'static Root<Counter>, Failure> {
    if let Object::Counter(it) = &it.object { Ok(it) } else { Err(wrong(it, "counter")) }
}

fn long_text(it: &'static Static) -> Result<&'static Root<Text>, Failure> {
    if let Object::Text(it) = &it.object { Ok(it) } else { Err(wrong(it, "text")) }
}

fn element(it: &Static, of: &Of, value: &[u8]) -> Result<Element, Failure> {
    of.element(value)
        .ok_or_else(|| Failure::misuse(format!("{} bytes are no element of `{}`", value.len(), it.name)))
}

/// Copies an element out.
///
/// # Safety
/// `size` bytes can be written at `to`, or it is NULL.
unsafe fn copy_out(it: &Static, bytes: &[u8], to: *mut c_void, size: usize) -> Result<Code, Failure> {
    if to.is_null() {
        return Ok(Code::OUTLIVE_OK);
    }
    if bytes.len() != size {
        let words = format!("an element of `{}` has {} bytes, not {size}", it.name, bytes.len());
        return Err(Failure::misuse(words));
    }
    // SAFETY: as the caller promises; what the program gives does not overlap memory of this library.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), size) };
    Ok(Code::OUTLIVE_OK)
}

fn of_code(outcome: Result<Code, Code>) -> Code {
    outcome.unwrap_or_else(|code| code)
}

/// The struct of a variable, to read until `outlive_end`; NULL if that fails. Waits while another transaction has changed
/// it and not committed.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_variable_read(it: *const outlive_static) -> *const c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, false)?;
        let guard = variable(it)?.read();
        let pointer: *const c_void = guard.bytes().as_ptr().cast();
        hold(pointer, address(it), Guard::ReadVariable(guard));
        Ok(pointer)
    });
    pointer.unwrap_or(std::ptr::null())
}

/// The struct of a variable, to change until `outlive_end`; NULL if that fails. It is this thread's transaction's own until
/// that is committed or undone.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_variable_write(it: *const outlive_static) -> *mut c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, true)?;
        let mut guard = variable(it)?.write()?;
        let pointer: *mut c_void = guard.record().bytes_mut().as_mut_ptr().cast();
        hold(pointer, address(it), Guard::WriteVariable(guard));
        Ok(pointer)
    });
    pointer.unwrap_or(std::ptr::null_mut())
}

/// The element of a key, to read until `outlive_end`; NULL if there is none, or if that fails. How many bytes it has is
/// said in `length`, unless that is NULL.
///
/// # Safety
/// `it` was declared by a macro, the key can be read, `length` written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_read(
    it: *const outlive_static,
    key: outlive_bytes,
    length: *mut usize,
) -> *const c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        may_begin(address(it), it.name, false)?;
        let guard = map(it)?.read();
        let Some(element) = guard.get(key) else { return Ok(std::ptr::null()) };
        let bytes = element.bytes();
        // SAFETY: as the caller promises.
        if let Some(length) = unsafe { length.as_mut() } {
            *length = bytes.len();
        }
        let (pointer, length): (*const c_void, _) = (bytes.as_ptr().cast(), bytes.len());
        Ok(hold_bytes(pointer, length, address(it), Guard::ReadMap(guard)))
    });
    pointer.unwrap_or(std::ptr::null())
}

/// The struct of a key, to change until `outlive_end`; NULL if there is none, or if that fails.
///
/// # Safety
/// `it` was declared by a macro, the key can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_write(it: *const outlive_static, key: outlive_bytes) -> *mut c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        may_begin(address(it), it.name, true)?;
        let Some(mut guard) = map(it)?.write(key)? else { return Ok(std::ptr::null_mut()) };
        let Some(record) = guard.record() else { return Ok(std::ptr::null_mut()) };
        let pointer: *mut c_void = record.bytes_mut().as_mut_ptr().cast();
        hold(pointer, address(it), Guard::WriteMap(guard));
        Ok(pointer)
    });
    pointer.unwrap_or(std::ptr::null_mut())
}

/// Copies the element of a key to `to`, which has `size` bytes; only says whether there is one if `to` is NULL.
/// `OUTLIVE_NONE`: there is none.
///
/// # Safety
/// `it` was declared by a macro, the key can be read, `size` bytes can be written at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_copy(
    it: *const outlive_static,
    key: outlive_bytes,
    to: *mut c_void,
    size: usize,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        may_begin(address(it), it.name, false)?;
        match map(it)?.read().get(key) {
            // SAFETY: as the caller promises.
            Some(element) => unsafe { copy_out(it, element.bytes(), to, size) },
            None => Ok(Code::OUTLIVE_NONE),
        }
    }))
}

/// Puts an element under a key, in place of the one that was there.
///
/// # Safety
/// `it` was declared by a macro, key and element can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_put(
    it: *const outlive_static,
    key: outlive_bytes,
    value: outlive_bytes,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, key, value) = unsafe { (declared(it)?, key.get()?, value.get()?) };
        may_begin(address(it), it.name, true)?;
        let map = map(it)?;
        map.put(key, element(it, map.of(), value)?)?;
        Ok(Code::OUTLIVE_OK)
    }))
}

/// Takes the element of a key out. `OUTLIVE_NONE`: there was none.
///
/// # Safety
/// `it` was declared by a macro, the key can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_remove(it: *const outlive_static, key: outlive_bytes) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        may_begin(address(it), it.name, true)?;
        let gone = map(it)?.remove(key)?;
        Ok(if gone.is_some() { Code::OUTLIVE_OK } else { Code::OUTLIVE_NONE })
    }))
}

/// Shows all elements in the order of their keys, from the key `from` on, until `visit` returns something else than 0.
/// The map cannot be changed by this thread meanwhile.
///
/// # Safety
/// `it` was declared by a macro, the key can be read, `visit` can be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_map_each(
    it: *const outlive_static,
    from: outlive_bytes,
    visit: outlive_visit_entry,
    context: *mut c_void,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, from) = unsafe { (declared(it)?, from.get()?) };
        let visit = visit.ok_or_else(|| Failure::misuse("no function to visit with is given"))?;
        may_begin(address(it), it.name, false)?;
        let guard = map(it)?.read();
        let _visiting = Visiting::begin(it);
        for (key, element) in guard.from(from) {
            // SAFETY: as the caller promises.
            let goes_on =
                unsafe { visit(context, outlive_bytes::lent(key), outlive_bytes::lent(element.bytes())) };
            if goes_on != 0 {
                break;
            }
        }
        Ok(Code::OUTLIVE_OK)
    }))
}

/// While elements are visited, what would wait for that is refused.
struct Visiting(Box<u8>);

impl Visiting {
    fn begin(it: &'static Static) -> Self {
        let this = Self(Box::new(0));
        hold(this.pointer(), address(it), Guard::Visit);
        this
    }

    /// An address that nothing else has.
    fn pointer(&self) -> *const c_void {
        std::ptr::from_ref(&*self.0).cast()
    }
}

impl Drop for Visiting {
    fn drop(&mut self) {
        end(self.pointer());
    }
}

/// The element at a place, to read until `outlive_end`; NULL if there is none, or if that fails. How many bytes it has is
/// said in `length`, unless that is NULL.
///
/// # Safety
/// `it` was declared by a macro, `length` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_read(
    it: *const outlive_static,
    place: usize,
    length: *mut usize,
) -> *const c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, false)?;
        let guard = list(it)?.read();
        let Some(element) = guard.get(place) else { return Ok(std::ptr::null()) };
        let bytes = element.bytes();
        // SAFETY: as the caller promises.
        if let Some(length) = unsafe { length.as_mut() } {
            *length = bytes.len();
        }
        let (pointer, length): (*const c_void, _) = (bytes.as_ptr().cast(), bytes.len());
        Ok(hold_bytes(pointer, length, address(it), Guard::ReadList(guard)))
    });
    pointer.unwrap_or(std::ptr::null())
}

/// The struct at a place, to change until `outlive_end`; NULL if there is none, or if that fails.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_write(it: *const outlive_static, place: usize) -> *mut c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, true)?;
        let Some(mut guard) = list(it)?.write(place)? else { return Ok(std::ptr::null_mut()) };
        let Some(record) = guard.record() else { return Ok(std::ptr::null_mut()) };
        let pointer: *mut c_void = record.bytes_mut().as_mut_ptr().cast();
        hold(pointer, address(it), Guard::WriteList(guard));
        Ok(pointer)
    });
    pointer.unwrap_or(std::ptr::null_mut())
}

/// Adds an element at the end, or in front if `in_front` is not 0.
///
/// # Safety
/// `it` was declared by a macro, the element can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_push(
    it: *const outlive_static,
    value: outlive_bytes,
    in_front: c_int,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, value) = unsafe { (declared(it)?, value.get()?) };
        may_begin(address(it), it.name, true)?;
        let list = list(it)?;
        list.push(element(it, list.of(), value)?, in_front != 0)?;
        Ok(Code::OUTLIVE_OK)
    }))
}

/// Puts an element in the place of another. `OUTLIVE_NONE`: there is no such place.
///
/// # Safety
/// `it` was declared by a macro, the element can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_put(
    it: *const outlive_static,
    place: usize,
    value: outlive_bytes,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, value) = unsafe { (declared(it)?, value.get()?) };
        may_begin(address(it), it.name, true)?;
        let list = list(it)?;
        let there = list.put(place, element(it, list.of(), value)?)?;
        Ok(if there { Code::OUTLIVE_OK } else { Code::OUTLIVE_NONE })
    }))
}

/// Takes the last element out, or the first if `in_front` is not 0, and copies it to `to`, which has `size` bytes (NULL:
/// nowhere). `OUTLIVE_NONE`: there was none.
///
/// # Safety
/// `it` was declared by a macro, `size` bytes can be written at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_pop(
    it: *const outlive_static,
    in_front: c_int,
    to: *mut c_void,
    size: usize,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, true)?;
        match list(it)?.pop(in_front != 0)? {
            // SAFETY: as the caller promises.
            Some(element) => unsafe { copy_out(it, element.bytes(), to, size) },
            None => Ok(Code::OUTLIVE_NONE),
        }
    }))
}

/// The same for elements of any length: into a buffer that is to be given back.
///
/// # Safety
/// `it` was declared by a macro, `to` can be written and holds nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_take(
    it: *const outlive_static,
    in_front: c_int,
    to: *mut outlive_buffer,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, to) = unsafe { (declared(it)?, to.as_mut()) };
        let to = to.ok_or_else(|| Failure::misuse("no buffer is given"))?;
        may_begin(address(it), it.name, true)?;
        let Some(element) = list(it)?.pop(in_front != 0)? else { return Ok(Code::OUTLIVE_NONE) };
        *to = outlive_buffer::of(element.bytes().into());
        Ok(Code::OUTLIVE_OK)
    }))
}

/// Shows all elements until `visit` returns something else than 0. The list cannot be changed by this thread meanwhile.
///
/// # Safety
/// `it` was declared by a macro, `visit` can be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_list_each(
    it: *const outlive_static,
    visit: outlive_visit_element,
    context: *mut c_void,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        let visit = visit.ok_or_else(|| Failure::misuse("no function to visit with is given"))?;
        may_begin(address(it), it.name, false)?;
        let guard = list(it)?.read();
        let _visiting = Visiting::begin(it);
        for element in guard.iter() {
            // SAFETY: as the caller promises.
            if unsafe { visit(context, outlive_bytes::lent(element.bytes())) } != 0 {
                break;
            }
        }
        Ok(Code::OUTLIVE_OK)
    }))
}

/// How many elements a map, a list, or what handles there are has, and how many bytes a text; 0 if that fails.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_count(it: *const outlive_static) -> usize {
    let count = part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, false)?;
        match &it.object {
            Object::Map(map) => Ok(map.read().len()),
            Object::List(list) => Ok(list.read().len()),
            Object::Text(text) => Ok(text.read().len()),
            Object::Handles(handles) => Ok(handles.read().len()),
            Object::Variable(_) | Object::Counter(_) => Err(wrong(it, "collection")),
        }
    });
    count.unwrap_or(0)
}

/// Takes everything out of a map, a list, a text or handles, which undoes what these opened.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_clear(it: *const outlive_static) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let it = unsafe { declared(it) }?;
        may_begin(address(it), it.name, true)?;
        match &it.object {
            Object::Map(map) => map.clear()?,
            Object::List(list) => list.clear()?,
            Object::Text(text) => {
                let mut text = text.try_write()?;
                let all = 0..text.len();
                text.replace(all, "");
            }
            Object::Handles(handles) => handles.try_write()?.clear(),
            Object::Variable(_) | Object::Counter(_) => return Err(wrong(it, "collection")),
        }
        Ok(Code::OUTLIVE_OK)
    }))
}

/// Adds to a counter, which wraps around at the ends of `int64_t`.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_counter_add(it: *const outlive_static, difference: i64) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        counter(unsafe { declared(it) }?)?.try_write()?.add(difference);
        Ok(Code::OUTLIVE_OK)
    }))
}

/// A counter's number; 0 if that fails.
///
/// # Safety
/// `it` was declared by a macro.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_counter_get(it: *const outlive_static) -> i64 {
    // SAFETY: as the caller promises.
    part(|| Ok(counter(unsafe { declared(it) }?)?.read().get())).unwrap_or(0)
}

/// Puts UTF-8 in place of `gone` bytes from `start` on; a `start` of `SIZE_MAX` is the end. `OUTLIVE_NONE`: that does not
/// lie within the text and between its characters, and nothing happened.
///
/// # Safety
/// `it` was declared by a macro, the bytes can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_text_replace(
    it: *const outlive_static,
    start: usize,
    gone: usize,
    comes: outlive_bytes,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, comes) = unsafe { (declared(it)?, comes.get()?) };
        let comes = std::str::from_utf8(comes)
            .map_err(|_| Failure::misuse(format!("what `{}` was given is not UTF-8", it.name)))?;
        let mut text = long_text(it)?.try_write()?;
        let start = if start == usize::MAX { text.len() } else { start };
        let range = start.checked_add(gone).map(|end| start..end);
        let done = range.is_some_and(|range| text.replace(range, comes));
        Ok(if done { Code::OUTLIVE_OK } else { Code::OUTLIVE_NONE })
    }))
}

/// Copies a text into a buffer that is to be given back.
///
/// # Safety
/// `it` was declared by a macro, `to` can be written and holds nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_text_get(
    it: *const outlive_static,
    to: *mut outlive_buffer,
) -> outlive_code {
    of_code(part(|| {
        // SAFETY: as the caller promises.
        let (it, to) = unsafe { (declared(it)?, to.as_mut()) };
        let to = to.ok_or_else(|| Failure::misuse("no buffer is given"))?;
        let bytes: Box<[u8]> = long_text(it)?.read().read().as_bytes().into();
        *to = outlive_buffer::of(bytes);
        Ok(Code::OUTLIVE_OK)
    }))
}
