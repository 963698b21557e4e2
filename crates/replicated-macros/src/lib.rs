//! The attribute macros of `outlive-replicated`; documented there.

mod forbidden;
mod function;
mod item;
mod options;

use proc_macro::TokenStream;
use quote::quote;
use syn::{Item, ItemFn, LitInt, parse_macro_input};

/// Marks a static, struct, enum, `impl` or function as replicated. See the crate `outlive_replicated`.
#[proc_macro_attribute]
pub fn replicated(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as Item);
    let arguments = proc_macro2::TokenStream::from(arguments);
    let outcome = match item {
        Item::Static(item) => item::mark_static(arguments, item),
        Item::Struct(item) => item::mark_struct(arguments, item),
        Item::Enum(item) => item::mark_enum(arguments, item),
        Item::Impl(item) => item::mark_impl(arguments, item),
        Item::Fn(item) => function::mark(arguments, item),
        other => Err(syn::Error::new_spanned(
            other,
            "#[replicated] goes on a static, a struct, an enum, an impl or a function",
        )),
    };
    outcome.unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a scenario a test that kills its process at every commit. See `outlive_replicated::testing`.
#[proc_macro_attribute]
pub fn failover_test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemFn);
    let mut random = quote!(10);
    let options = syn::meta::parser(|meta| {
        if !meta.path.is_ident("random") {
            return Err(meta.error("only `random = …` can be said here: how often it is killed at random"));
        }
        let times: LitInt = meta.value()?.parse()?;
        random = quote!(#times);
        Ok(())
    });
    parse_macro_input!(arguments with options);
    let (name, attributes) = (&item.sig.ident, &item.attrs);
    let scenario = syn::ItemFn { attrs: Vec::new(), ..item.clone() };
    quote! {
        #(#attributes)*
        #[test]
        fn #name() {
            #scenario
            ::outlive_replicated::testing::failover(
                ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
                #random,
                #name,
            );
        }
    }
    .into()
}
