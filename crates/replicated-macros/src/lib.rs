//! The attribute macros of `outlive-replicated`; documented there.

mod forbidden;
mod item;
mod options;

use proc_macro::TokenStream;
use syn::{Item, parse_macro_input};

/// Marks a static, struct, enum or `impl` as replicated. See the crate `outlive_replicated`.
#[proc_macro_attribute]
pub fn replicated(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as Item);
    let arguments = proc_macro2::TokenStream::from(arguments);
    let outcome = match item {
        Item::Static(item) => item::mark_static(arguments, item),
        Item::Struct(item) => item::mark_struct(arguments, item),
        Item::Enum(item) => item::mark_enum(arguments, item),
        Item::Impl(item) => item::mark_impl(arguments, item),
        other => Err(syn::Error::new_spanned(
            other,
            "#[replicated] goes on a static, a struct, an enum or an impl",
        )),
    };
    outcome.unwrap_or_else(syn::Error::into_compile_error).into()
}
