//! What C does, from here: so that Miri, which runs no C, sees the pointers that go out and come back.
//!
//!     MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks" cargo +nightly miri test -p outlive-replicated-c --lib
//!
//! Statics and the thread that calls replicated functions live as long as the process: Miri would call that a leak.

mod endings;

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use crate::code::{Code, outlive_last_error};
use crate::describe::*;
use crate::function::*;
use crate::guard::outlive_end;
use crate::start::outlive_output_check;
use crate::state::*;
use crate::transaction::*;

#[repr(C)]
#[derive(Clone, Copy)]
struct Thing {
    count: u32,
    name: [u8; 4],
    local: *const u8,
}

struct Description(outlive_type);
// SAFETY: it leads to statics that nobody changes.
unsafe impl Sync for Description {}
struct Fields([outlive_field; 3]);
// SAFETY: as above.
unsafe impl Sync for Fields {}

const fn field(name: &'static std::ffi::CStr, kind: outlive_kind, offset: usize) -> outlive_field {
    outlive_field {
        name: name.as_ptr(),
        kind: kind as u32,
        added: 0,
        offset,
        size: 4,
        count: 0,
        nested: None,
        was: null(),
    }
}

static FIELDS: Fields = Fields([
    field(c"count", outlive_kind::OUTLIVE_UNSIGNED, 0),
    field(c"name", outlive_kind::OUTLIVE_CHARS, 4),
    field(c"", outlive_kind::OUTLIVE_END, 0),
]);
static THING: Description = Description(outlive_type {
    name: c"ffi_thing".as_ptr(),
    size: size_of::<Thing>(),
    alignment: align_of::<Thing>(),
    fields: FIELDS.0.as_ptr(),
});

// SAFETY: it takes nothing.
unsafe extern "C" fn thing() -> *const outlive_type {
    &raw const THING.0
}

/// As a macro of the header declares it; it lives as long as the process.
fn declare(name: &'static std::ffi::CStr, form: outlive_form, structs: bool) -> *const outlive_static {
    let of: Option<unsafe extern "C" fn() -> *const outlive_type> = if structs { Some(thing) } else { None };
    let it = Box::new(outlive_static { name: name.as_ptr(), form: form as u32, of, object: null_mut() });
    let it = Box::into_raw(it);
    // SAFETY: made as the macros make it.
    assert_eq!(unsafe { outlive_register(it) }, Code::OUTLIVE_OK);
    it
}

fn lend<T>(of: &T) -> outlive_bytes {
    outlive_bytes { data: std::ptr::from_ref(of).cast(), length: size_of::<T>() }
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn sum(context: *mut c_void, _key: outlive_bytes, element: outlive_bytes) -> c_int {
    // SAFETY: the test gives a number, the map has such structs.
    unsafe {
        assert_eq!(element.length, size_of::<Thing>());
        *context.cast::<u32>() += (*element.data.cast::<Thing>()).count;
    }
    0
}

#[test]
fn pointers_that_go_out_come_back() {
    let one = declare(c"ffi_one", outlive_form::OUTLIVE_FORM_VARIABLE, true);
    let map = declare(c"ffi_map", outlive_form::OUTLIVE_FORM_MAP, true);
    let list = declare(c"ffi_list", outlive_form::OUTLIVE_FORM_LIST, false);
    // SAFETY: as a program in C uses them.
    unsafe {
        let writing = outlive_variable_write(one).cast::<Thing>();
        (*writing).count = 7;
        (*writing).local = writing.cast();
        assert!(outlive_variable_read(one).is_null(), "it is being written to");
        assert_eq!(outlive_end(writing.cast()), Code::OUTLIVE_OK);
        assert_eq!(outlive_commit(), Code::OUTLIVE_GUARD_ALIVE);
        let (first, second) = (outlive_variable_read(one), outlive_variable_read(one));
        assert!(!first.is_null() && (*second.cast::<Thing>()).count == 0, "undone with what failed");
        assert_eq!((outlive_end(first), outlive_end(second)), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));
        assert_eq!(outlive_end(first), Code::OUTLIVE_MISUSE);
        assert!(!std::ffi::CStr::from_ptr(outlive_last_error()).is_empty());

        let (key, thing) = (5u16, Thing { count: 3, name: *b"abcd", local: null() });
        assert_eq!(outlive_map_put(map, lend(&key), lend(&thing)), Code::OUTLIVE_OK);
        let entry = outlive_map_write(map, lend(&key)).cast::<Thing>();
        (*entry).count += 1;
        assert_eq!(outlive_end(entry.cast()), Code::OUTLIVE_OK);
        let mut total = 0u32;
        let context = (&raw mut total).cast();
        assert_eq!(outlive_map_each(map, lend(&[0u8; 0]), Some(sum), context), Code::OUTLIVE_OK);
        assert_eq!((total, outlive_count(map)), (4, 1));
        let mut copy = Thing { count: 0, ..thing };
        let to = (&raw mut copy).cast();
        assert_eq!(outlive_map_copy(map, lend(&key), to, size_of::<Thing>()), Code::OUTLIVE_OK);
        assert_eq!((copy.count, &copy.name), (4, b"abcd"));

        let mut buffer = outlive_buffer { data: null_mut(), length: 0 };
        assert_eq!(outlive_list_push(list, lend(b"some"), 1), Code::OUTLIVE_OK);
        assert_eq!(outlive_list_push(list, outlive_bytes { data: null(), length: 0 }, 1), Code::OUTLIVE_OK);
        assert_eq!(outlive_list_take(list, 1, &raw mut buffer), Code::OUTLIVE_OK);
        assert!(buffer.data.is_null() && buffer.length == 0);
        assert_eq!(outlive_list_take(list, 0, &raw mut buffer), Code::OUTLIVE_OK);
        assert_eq!(std::slice::from_raw_parts(buffer.data.cast::<u8>(), buffer.length), b"some");
        outlive_buffer_free(&raw mut buffer);
        outlive_buffer_free(&raw mut buffer);
        assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
    }
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn open(arguments: outlive_bytes, value: *mut *mut c_void) -> c_int {
    // SAFETY: the library gives both.
    unsafe {
        if arguments.length == 0 {
            return outlive_fail(c"nothing".as_ptr());
        }
        *value = Box::into_raw(Box::new(*arguments.data.cast::<u8>())).cast();
    }
    0
}

// SAFETY: called by the library alone, with what `open` has made.
unsafe extern "C" fn undo(value: *mut c_void) {
    // SAFETY: what `open` has made.
    drop(unsafe { Box::from_raw(value.cast::<u8>()) });
}

#[test]
fn what_a_function_opened_is_used_and_undone() {
    let handles = declare(c"ffi_handles", outlive_form::OUTLIVE_FORM_HANDLES, false);
    let function = outlive_function {
        name: c"ffi_open".as_ptr(),
        policy: outlive_policy::OUTLIVE_EAGER as u32,
        open: Some(open),
        undo: Some(undo),
    };
    // SAFETY: as a program in C uses them.
    unsafe {
        let function = &raw const function;
        assert_eq!(outlive_register_function(function), Code::OUTLIVE_OK);
        let none = outlive_bytes { data: null(), length: 0 };
        assert_eq!(outlive_handle_open(handles, lend(&1u8), function, none), Code::OUTLIVE_CALL_FAILED);
        assert_eq!(outlive_rollback(), Code::OUTLIVE_OK);
        assert_eq!(outlive_handle_open(handles, lend(&1u8), function, lend(&9u8)), Code::OUTLIVE_OK);
        assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
        let value = outlive_handle_use(handles, lend(&1u8));
        assert_eq!(*value.cast::<u8>(), 9);
        assert_eq!(outlive_end(value), Code::OUTLIVE_OK);
        assert_eq!(outlive_handle_close(handles, lend(&1u8)), Code::OUTLIVE_OK);
        assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
    }
}
