//! What becomes of a marked item.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Error, Fields, Generics, Ident, Index, ItemEnum, ItemImpl, ItemStatic, ItemStruct, LitStr, Member,
    Result, StaticMutability, Type,
};

use crate::forbidden;
use crate::options::{self, FieldOptions};

pub fn mark_static(arguments: TokenStream, item: ItemStatic) -> Result<TokenStream> {
    if let StaticMutability::Mut(mutability) = item.mutability {
        return Err(Error::new_spanned(
            mutability,
            "a replicated static is changed through `.write()`: leave out `mut`",
        ));
    }
    forbidden::check(&item.ty)?;
    let ItemStatic { attrs, vis, ident, ty, expr, .. } = item;
    let name = match options::type_name(arguments)? {
        Some(name) => quote!(#name),
        None => named(&ident),
    };
    Ok(quote! {
        #(#attrs)*
        #vis static #ident: ::outlive_replicated::Root<#ty> = {
            fn make() -> #ty {
                #expr
            }
            ::outlive_replicated::Root::new(#name, make)
        };
        ::outlive_replicated::__private::inventory::submit! {
            ::outlive_replicated::__private::RootEntry { register: || #ident.register() }
        }
    })
}

/// The same in every build: module and name.
fn named(ident: &Ident) -> TokenStream {
    let ident = ident.to_string();
    quote!(::core::concat!(::core::module_path!(), "::", #ident))
}

/// A field that is replicated.
struct Part {
    member: Member,
    /// What a value of it is bound to.
    bound: Ident,
    of: Type,
    options: FieldOptions,
}

/// Fields as they are replicated, and those that each side has on its own.
struct Parts {
    parts: Vec<Part>,
    local: Vec<(Member, TokenStream)>,
}

fn take_apart(fields: &mut Fields, local_allowed: bool) -> Result<Parts> {
    let mut found = Parts { parts: Vec::new(), local: Vec::new() };
    for (place, field) in fields.iter_mut().enumerate() {
        let options = options::of_field(&mut field.attrs)?;
        let member = match &field.ident {
            Some(ident) => Member::Named(ident.clone()),
            None => Member::Unnamed(Index::from(place)),
        };
        if let Some(rebuild) = options.local {
            if !local_allowed {
                return Err(Error::new_spanned(
                    &field.ty,
                    "an enum is shipped whole: put the `#[local]` field into a struct",
                ));
            }
            found.local.push((member, rebuild));
            continue;
        }
        forbidden::check(&field.ty)?;
        let bound = format_ident!("field{}", place);
        found.parts.push(Part { member, bound, of: field.ty.clone(), options });
    }
    Ok(found)
}

impl Part {
    fn name(&self) -> String {
        match &self.member {
            Member::Named(ident) => ident.to_string().trim_start_matches("r#").to_owned(),
            Member::Unnamed(index) => index.index.to_string(),
        }
    }

    /// As the schema describes it.
    fn described(&self) -> TokenStream {
        let (name, of, was) = (self.name(), &self.of, &self.options.was);
        let has_default = self.options.default.is_some();
        quote_spanned! {of.span()=>
            ::outlive_replicated::__private::Field {
                name: #name.into(),
                shape: <#of as ::outlive_replicated::Value>::shape(),
                of: <#of as ::outlive_replicated::Value>::name(),
                has_default: #has_default,
                was: ::std::vec![#(#was.into()),*],
            }
        }
    }
}

impl Parts {
    /// Reads all fields, as this or as another version of the program wrote them, and builds `constructor` of them.
    fn decode(&self, key: &TokenStream, constructor: &TokenStream) -> TokenStream {
        let member: Vec<_> = self.parts.iter().map(|part| &part.member).collect();
        let of: Vec<_> = self.parts.iter().map(|part| &part.of).collect();
        let bound: Vec<_> = self.parts.iter().map(|part| &part.bound).collect();
        let place = 0..self.parts.len();
        let (local, rebuild): (Vec<_>, Vec<_>) = self.local.iter().map(|(l, r)| (l, r)).unzip();
        let missing = self.parts.iter().map(|part| match &part.options.default {
            Some(default) => default.clone(),
            // The schemas were compared: this is a primary that does not keep to its own.
            None => quote!(return Err(::outlive_replicated::WireError::Truncated)),
        });
        quote! {
            match from.plan(#key) {
                None => #constructor {
                    #(#member: <#of as ::outlive_replicated::Value>::decode(from)?,)*
                    #(#local: #rebuild,)*
                },
                Some(plan) => {
                    #(let mut #bound: Option<#of> = None;)*
                    for (number, place) in plan.iter().enumerate() {
                        match place {
                            #(Some(#place) => {
                                #bound = Some(<#of as ::outlive_replicated::Value>::decode(from)?);
                            })*
                            _ => from.skip_field(#key, number)?,
                        }
                    }
                    #constructor {
                        #(#member: match #bound { Some(value) => value, None => #missing },)*
                        #(#local: #rebuild,)*
                    }
                }
            }
        }
    }
}

fn refuse_generics(generics: &Generics) -> Result<()> {
    if generics.params.is_empty() {
        return Ok(());
    }
    Err(Error::new_spanned(
        generics,
        "a replicated type has one name and one shape on every node: write it without parameters",
    ))
}

fn type_name(arguments: TokenStream, ident: &Ident) -> Result<(TokenStream, Option<LitStr>)> {
    let given = options::type_name(arguments)?;
    Ok((given.as_ref().map_or_else(|| named(ident), |name| quote!(#name)), given))
}

pub fn mark_struct(arguments: TokenStream, mut item: ItemStruct) -> Result<TokenStream> {
    refuse_generics(&item.generics)?;
    let ident = item.ident.clone();
    let (name, _) = type_name(arguments, &ident)?;
    let parts = take_apart(&mut item.fields, true)?;
    let described = parts.parts.iter().map(Part::described);
    let of: Vec<_> = parts.parts.iter().map(|part| &part.of).collect();
    let member: Vec<_> = parts.parts.iter().map(|part| &part.member).collect();
    let place: Vec<_> = (0..parts.parts.len()).map(Index::from).collect();
    let number: Vec<_> = (0..parts.parts.len()).collect();
    let wire_number = 0..parts.parts.len() as u64;
    let decode = parts.decode(&name, &quote!(Self));
    Ok(quote! {
        #item

        #[automatically_derived]
        impl ::outlive_replicated::Value for #ident {
            type Shadow = (#(<#of as ::outlive_replicated::Value>::Shadow,)*);

            fn shape() -> ::outlive_replicated::__private::Shape {
                ::outlive_replicated::__private::Shape::Named(#name.into())
            }

            fn name() -> ::std::string::String {
                #name.into()
            }

            fn describe(types: &mut ::outlive_replicated::__private::Types) {
                if types.enter::<Self>(#name) {
                    let fields = ::std::vec![#(#described),*];
                    let variants = ::std::vec![::outlive_replicated::__private::Variant {
                        name: ::std::string::String::new(),
                        fields,
                    }];
                    let definition = ::outlive_replicated::__private::Definition { is_enum: false, variants };
                    types.define(#name, definition);
                    #(<#of as ::outlive_replicated::Value>::describe(types);)*
                }
            }

            fn encode(&self, to: &mut ::outlive_replicated::__private::Writer) {
                #(::outlive_replicated::Value::encode(&self.#member, to);)*
            }

            fn decode(
                from: &mut ::outlive_replicated::__private::Reader<'_>,
            ) -> ::core::result::Result<Self, ::outlive_replicated::WireError> {
                Ok(#decode)
            }

            #[inline]
            fn shadow(&self) -> Self::Shadow {
                (#(::outlive_replicated::Value::shadow(&self.#member),)*)
            }

            fn encode_shadow(shadow: &Self::Shadow, to: &mut ::outlive_replicated::__private::Writer) {
                #(<#of as ::outlive_replicated::Value>::encode_shadow(&shadow.#place, to);)*
            }

            #[inline]
            fn differs(&self, shadow: &Self::Shadow) -> bool {
                false #(|| ::outlive_replicated::Value::differs(&self.#member, &shadow.#place))*
            }

            fn diff(&self, shadow: &Self::Shadow, diff: &mut ::outlive_replicated::__private::Diff<'_>) {
                #(diff.field(#wire_number, &self.#member, &shadow.#place);)*
                diff.end();
            }

            fn patch(
                &mut self,
                from: &mut ::outlive_replicated::__private::Reader<'_>,
            ) -> ::core::result::Result<(), ::outlive_replicated::WireError> {
                while let Some(number) = from.changed_field()? {
                    let place = match from.plan(#name) {
                        None => Some(number),
                        Some(plan) => plan.get(number).copied().flatten(),
                    };
                    match place {
                        #(Some(#number) => {
                            ::outlive_replicated::Value::patch(&mut self.#member, from)?;
                        })*
                        _ => from.skip_patch(#name, number)?,
                    }
                }
                Ok(())
            }

            fn trace(&self, visit: &mut dyn FnMut(u64)) {
                #(::outlive_replicated::Value::trace(&self.#member, visit);)*
            }
        }
    })
}

pub fn mark_enum(arguments: TokenStream, mut item: ItemEnum) -> Result<TokenStream> {
    refuse_generics(&item.generics)?;
    let ident = item.ident.clone();
    let (name, given) = type_name(arguments, &ident)?;
    let mut described = Vec::new();
    let mut types = Vec::new();
    let mut encoded = Vec::new();
    let mut decoded = Vec::new();
    let mut traced = Vec::new();
    for (place, variant) in item.variants.iter_mut().enumerate() {
        let parts = take_apart(&mut variant.fields, false)?;
        let (of_variant, variant_name) = (&variant.ident, variant.ident.to_string());
        let key = match &given {
            Some(given) => quote!(::core::concat!(#given, "::<", #variant_name, ">")),
            None => {
                let ident = ident.to_string();
                quote!(::core::concat!(::core::module_path!(), "::", #ident, "::<", #variant_name, ">"))
            }
        };
        let fields = parts.parts.iter().map(Part::described);
        described.push(quote! {
            ::outlive_replicated::__private::Variant {
                name: #variant_name.into(),
                fields: ::std::vec![#(#fields),*],
            }
        });
        types.extend(parts.parts.iter().map(|part| part.of.clone()));
        let member: Vec<_> = parts.parts.iter().map(|part| &part.member).collect();
        let bound: Vec<_> = parts.parts.iter().map(|part| &part.bound).collect();
        let number = place as u64;
        encoded.push(quote! {
            Self::#of_variant { #(#member: #bound),* } => {
                to.number(#number);
                #(::outlive_replicated::Value::encode(#bound, to);)*
            }
        });
        let decode = parts.decode(&key, &quote!(Self::#of_variant));
        decoded.push(quote!(#number => #decode,));
        traced.push(quote! {
            Self::#of_variant { #(#member: #bound),* } => {
                #(::outlive_replicated::Value::trace(#bound, visit);)*
            }
        });
    }
    if encoded.is_empty() {
        return Err(Error::new_spanned(&item, "an enum without variants has no values to replicate"));
    }
    Ok(quote! {
        #item

        #[automatically_derived]
        impl ::outlive_replicated::Value for #ident {
            type Shadow = ::std::vec::Vec<u8>;

            fn shape() -> ::outlive_replicated::__private::Shape {
                ::outlive_replicated::__private::Shape::Named(#name.into())
            }

            fn name() -> ::std::string::String {
                #name.into()
            }

            fn describe(types: &mut ::outlive_replicated::__private::Types) {
                if types.enter::<Self>(#name) {
                    let variants = ::std::vec![#(#described),*];
                    let definition = ::outlive_replicated::__private::Definition { is_enum: true, variants };
                    types.define(#name, definition);
                    #(<#types as ::outlive_replicated::Value>::describe(types);)*
                }
            }

            fn encode(&self, to: &mut ::outlive_replicated::__private::Writer) {
                match self {
                    #(#encoded)*
                }
            }

            fn decode(
                from: &mut ::outlive_replicated::__private::Reader<'_>,
            ) -> ::core::result::Result<Self, ::outlive_replicated::WireError> {
                let number = from.number()?;
                Ok(match from.variant(#name, number)? {
                    #(#decoded)*
                    _ => return Err(::outlive_replicated::WireError::NotA("variant")),
                })
            }

            fn shadow(&self) -> Self::Shadow {
                ::outlive_replicated::__private::Writer::remembered(self)
            }

            fn encode_shadow(shadow: &Self::Shadow, to: &mut ::outlive_replicated::__private::Writer) {
                to.raw(shadow);
            }

            fn differs(&self, shadow: &Self::Shadow) -> bool {
                ::outlive_replicated::__private::Writer::remembered(self) != *shadow
            }

            fn trace(&self, visit: &mut dyn FnMut(u64)) {
                match self {
                    #(#traced)*
                }
            }
        }
    })
}

/// An `impl` stays as it is: what its methods with `&mut self` change is found by the write guard they are called
/// through. That the type is marked is checked here.
pub fn mark_impl(arguments: TokenStream, item: ItemImpl) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(arguments, "nothing can be said here"));
    }
    let of = &item.self_ty;
    let check = quote_spanned! {of.span()=>
        const _: () = ::outlive_replicated::__private::check::<#of>();
    };
    Ok(quote!(#item #check))
}
