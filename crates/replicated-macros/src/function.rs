//! What becomes of a marked function: one that makes a handle, and the call as the backup makes it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, FnArg, GenericArgument, Ident, ItemFn, Pat, Path, PathArguments, Result, ReturnType, Token, Type,
};

use crate::forbidden;

/// `#[replicated(eager | lazy, undo = path, on_error = fail | retry)]`
struct Options {
    lazy: bool,
    retry: bool,
    undo: Option<Path>,
    name: Option<syn::LitStr>,
}

fn options(arguments: TokenStream) -> Result<Options> {
    let mut options = Options { lazy: false, retry: false, undo: None, name: None };
    let mut eager = false;
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("eager") {
            eager = true;
        } else if meta.path.is_ident("lazy") {
            options.lazy = true;
        } else if meta.path.is_ident("undo") {
            options.undo = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("name") {
            options.name = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("on_error") {
            let policy: Ident = meta.value()?.parse()?;
            options.retry = match policy.to_string().as_str() {
                "fail" => false,
                "retry" => true,
                _ => return Err(Error::new(policy.span(), "`on_error` is `fail` or `retry`")),
            };
        } else {
            return Err(meta.error(
                "only `eager`, `lazy`, `undo = …`, `on_error = fail`, `on_error = retry` and `name = \"…\"` can be said here",
            ));
        }
        if eager && options.lazy {
            return Err(
                meta.error("a function is called on the backup at once (`eager`) or at takeover (`lazy`)")
            );
        }
        Ok(())
    });
    syn::parse::Parser::parse2(parser, arguments)?;
    Ok(options)
}

/// What the function opens, and whether it may fail.
fn opened(output: &ReturnType, function: &Ident) -> Result<(Type, bool)> {
    let ReturnType::Type(_, of) = output else {
        return Err(Error::new_spanned(
            function,
            "a replicated function returns what it has opened, which becomes a `Handle`: what it only changes is marked state, and needs no replicated function",
        ));
    };
    if let Type::Path(path) = &**of
        && let Some(last) = path.path.segments.last()
        && last.ident == "Result"
        && let PathArguments::AngleBracketed(generic) = &last.arguments
        && let Some(GenericArgument::Type(value)) = generic.args.first()
    {
        return Ok((value.clone(), true));
    }
    Ok(((**of).clone(), false))
}

/// A parameter: what it is bound to, its type, and whether it is taken by reference.
fn parameters(item: &ItemFn) -> Result<Vec<(Ident, Type, bool)>> {
    let mut found = Vec::new();
    for input in &item.sig.inputs {
        let FnArg::Typed(input) = input else {
            return Err(Error::new_spanned(
                input,
                "a method cannot be replicated: its object would have to be found again on the backup; write a function that takes values",
            ));
        };
        let Pat::Ident(name) = &*input.pat else {
            return Err(Error::new_spanned(&input.pat, "give this argument a name"));
        };
        if let Type::Reference(reference) = &*input.ty {
            let is_handle = matches!(&*reference.elem, Type::Path(path)
                if path.path.segments.last().is_some_and(|last| last.ident == "Handle"));
            if !is_handle || reference.mutability.is_some() {
                return Err(Error::new_spanned(
                    &input.ty,
                    "an argument travels to the backup by value: take an owned one (`String` for `&str`); only a `&Handle<…>` may be taken by reference",
                ));
            }
            found.push((name.ident.clone(), (*reference.elem).clone(), true));
        } else {
            forbidden::check(&input.ty)?;
            found.push((name.ident.clone(), (*input.ty).clone(), false));
        }
    }
    Ok(found)
}

pub fn mark(arguments: TokenStream, item: ItemFn) -> Result<TokenStream> {
    let Options { lazy, retry, undo, name } = options(arguments)?;
    let signature = &item.sig;
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new_spanned(
            asyncness,
            "a replicated function runs on a thread of the backup: leave out `async`, and let it open what async code then uses",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &signature.generics,
            "a replicated function has one name and one form on every node: write it without parameters",
        ));
    }
    for (found, token) in [
        (signature.unsafety.is_some(), "unsafe"),
        (signature.abi.is_some(), "extern"),
        (signature.constness.is_some(), "const"),
        (signature.variadic.is_some(), "variadic"),
    ] {
        if found {
            let words =
                format!("a replicated function is called by the library as well: it cannot be `{token}`");
            return Err(Error::new_spanned(signature, words));
        }
    }
    let (of, fallible) = opened(&signature.output, &signature.ident)?;
    let parameters = parameters(&item)?;
    let ident = &signature.ident;
    let name = match name {
        Some(name) => quote!(#name),
        None => {
            let name = ident.to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #name))
        }
    };
    let (attributes, visibility) = (&item.attrs, &item.vis);
    let mut original = item.clone();
    original.attrs = vec![syn::parse_quote!(
        #[allow(clippy::needless_pass_by_value, reason = "arguments are made anew for each side")]
    )];
    original.vis = syn::Visibility::Inherited;
    original.sig.ident = format_ident!("__replicated_{}", ident);
    let inner = &original.sig.ident;
    let bound: Vec<&Ident> = parameters.iter().map(|(name, ..)| name).collect();
    let types: Vec<&Type> = parameters.iter().map(|(_, of, _)| of).collect();
    let lend: Vec<Option<Token![&]>> =
        parameters.iter().map(|(.., lent)| lent.then(Default::default)).collect();
    let when = if lazy { quote!(Lazy) } else { quote!(Eager) };
    let on_error = if retry { quote!(Retry) } else { quote!(Fail) };
    // What the arguments are called is the program's business: what is bound beside them here has names that nobody has.
    let settle = |call: TokenStream| match fallible {
        true => quote!(#call.map_err(|error| ::std::string::ToString::to_string(&error))),
        false => quote!(::core::result::Result::<#of, ::std::string::String>::Ok(#call)),
    };
    let here = settle(quote!(#inner(#(#bound),*)));
    let there = settle(quote!(#inner(#(#lend #bound),*)));
    let undo = match undo {
        Some(undo) => {
            quote!(if let ::core::result::Result::Ok(value) = value.downcast::<#of>() { #undo(*value); })
        }
        None => quote!(::core::mem::drop(value)),
    };
    Ok(quote! {
        #(#attributes)*
        #visibility fn #ident(#(#bound: #lend #types),*)
            -> ::core::result::Result<::outlive_replicated::Handle<#of>, ::outlive_replicated::CallError>
        {
            #original

            fn read(
                from: &mut ::outlive_replicated::__private::Reader<'_>,
            ) -> ::core::result::Result<(#(#types,)*), ::outlive_replicated::WireError> {
                let _ = &from;
                Ok((#(<#types as ::outlive_replicated::Value>::decode(from)?,)*))
            }

            static FUNCTION: ::outlive_replicated::__private::Function = ::outlive_replicated::__private::Function {
                name: #name,
                signature: || {
                    let arguments: &[::std::string::String] =
                        &[#(<#types as ::outlive_replicated::Value>::name()),*];
                    ::std::format!("{}({})", #name, arguments.join(", "))
                },
                when: ::outlive_replicated::__private::When::#when,
                on_error: ::outlive_replicated::__private::OnError::#on_error,
                run: |__from| {
                    let (#(#bound,)*) = read(__from).map_err(|error| ::std::string::ToString::to_string(&error))?;
                    let __value: #of = #there?;
                    Ok(::std::boxed::Box::new(__value))
                },
                normalise: |__from, __to| {
                    let (#(#bound,)*) = read(__from)?;
                    let _ = &__to;
                    #(::outlive_replicated::Value::encode(&#bound, __to);)*
                    Ok(::std::boxed::Box::new((#(#bound,)*)))
                },
                undo: |value| { #undo },
            };
            ::outlive_replicated::__private::inventory::submit! {
                ::outlive_replicated::__private::FunctionEntry(&FUNCTION)
            }

            let mut __arguments = ::outlive_replicated::__private::Arguments::new();
            #(__arguments.add::<#types>(&#bound);)*
            ::outlive_replicated::Handle::made(&FUNCTION, __arguments, move || #here)
        }
    })
}
