//! What is written in `#[replicated(…)]` and `#[local(…)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::Parser;
use syn::{Attribute, Error, Expr, LitStr, Result, Token};

/// On a type: `#[replicated(name = "…")]`.
pub fn type_name(arguments: TokenStream) -> Result<Option<LitStr>> {
    let mut name = None;
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            name = Some(meta.value()?.parse()?);
            return Ok(());
        }
        Err(meta.error("only `name = \"…\"` can be said here"))
    });
    parser.parse2(arguments)?;
    Ok(name)
}

/// On a field.
#[derive(Default)]
pub struct FieldOptions {
    /// The value where the primary has none.
    pub default: Option<TokenStream>,
    /// Earlier names.
    pub was: Vec<LitStr>,
    /// Each side has its own, made by this.
    pub local: Option<TokenStream>,
}

/// Takes the attributes that are ours off a field.
pub fn of_field(attributes: &mut Vec<Attribute>) -> Result<FieldOptions> {
    let mut options = FieldOptions::default();
    for attribute in attributes.iter() {
        if attribute.path().is_ident("replicated") {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    options.default = Some(if meta.input.peek(Token![=]) {
                        let value: Expr = meta.value()?.parse()?;
                        quote!(#value)
                    } else {
                        quote!(::core::default::Default::default())
                    });
                } else if meta.path.is_ident("was") {
                    options.was.push(meta.value()?.parse()?);
                } else {
                    return Err(
                        meta.error("only `default`, `default = …` and `was = \"…\"` can be said here")
                    );
                }
                Ok(())
            })?;
        } else if attribute.path().is_ident("local") {
            options.local = Some(match &attribute.meta {
                syn::Meta::Path(_) => quote!(::core::default::Default::default()),
                syn::Meta::List(list) => {
                    let value: Expr = list.parse_args()?;
                    quote!(#value)
                }
                syn::Meta::NameValue(_) => {
                    return Err(Error::new_spanned(attribute, "write `#[local(…)]`, with what rebuilds it"));
                }
            });
        }
    }
    attributes
        .retain(|attribute| !attribute.path().is_ident("replicated") && !attribute.path().is_ident("local"));
    Ok(options)
}
