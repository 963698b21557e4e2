//! What a program's replicated types look like, and whether a backup of another version can hold them.
//!
//! The primary sends its schema to whoever joins. Fields are matched by name: one that is new on the backup needs a
//! default, one that is gone is read and dropped, one that was renamed says so. What cannot be matched is refused, by
//! type and field, before anything is sent.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// How a value lies on the wire, as far as is needed to pass over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// A LEB128 number.
    Number,
    /// This many bytes.
    Fixed(usize),
    /// Bytes with their length in front.
    Sized,
    /// A byte; unless it is 0, a value follows.
    Choice(Box<Shape>),
    /// A length and as many values.
    Sequence(Box<Shape>),
    /// Values one after the other.
    Tuple(Vec<Shape>),
    /// A collection: its id, then its content.
    Owned(Box<Shape>),
    /// A marked type.
    Named(String),
}

/// A field of a marked type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name in the source.
    pub name: String,
    /// How it lies on the wire.
    pub shape: Shape,
    /// The name of its type, so that two types of one shape are told apart.
    pub of: String,
    /// Whether a value can be made where the primary has none.
    pub has_default: bool,
    /// Earlier names of it.
    #[serde(skip)]
    pub was: Vec<String>,
}

/// A marked struct, or one variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Its name; that of a struct is empty.
    pub name: String,
    /// In the order in which they are numbered on the wire.
    pub fields: Vec<Field>,
}

/// A marked type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Whether it is an enum; a struct has one variant without a name.
    pub is_enum: bool,
    /// Its variants.
    pub variants: Vec<Variant>,
}

/// A marked static.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDefinition {
    /// Its id.
    pub id: u64,
    /// The name of its type.
    pub of: String,
    /// How its value lies on the wire.
    pub shape: Shape,
}

/// All that a program replicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Marked types by name.
    pub types: BTreeMap<String, Definition>,
    /// Marked statics by name.
    pub roots: BTreeMap<String, RootDefinition>,
    /// Types that a `Ref` leads to, by the number that they have on the wire.
    pub shared: Vec<(String, Shape)>,
    /// Marked functions, by the number that they have on the wire.
    pub functions: Vec<String>,
}

/// Why a backup cannot hold what the primary has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Incompatible {
    /// The same field holds something else.
    #[error(
        "field `{field}` of `{type_name}` is a {theirs} on the primary and a {ours} here: give the new field another name"
    )]
    OtherType {
        /// The type.
        type_name: String,
        /// Its field.
        field: String,
        /// What the primary has.
        theirs: String,
        /// What this program has.
        ours: String,
    },
    /// A field was added without a default.
    #[error(
        "field `{field}` of `{type_name}` is not on the primary and has no default: write `#[replicated(default)]` on it"
    )]
    NoDefault {
        /// The type.
        type_name: String,
        /// Its field.
        field: String,
    },
    /// A variant was removed.
    #[error("variant `{variant}` of `{type_name}` is not here: keep it until no primary can hold it")]
    NoVariant {
        /// The type.
        type_name: String,
        /// Its variant.
        variant: String,
    },
    /// A struct became an enum, or the other way.
    #[error("`{0}` is a struct on one side and an enum on the other: give the new type another name")]
    OtherKind(String),
    /// A function that the primary may call.
    #[error("the replicated function `{0}` is not here: keep it until no primary calls it")]
    NoFunction(String),
    /// A static of another type.
    #[error(
        "the replicated static `{root}` is a {theirs} on the primary and a {ours} here: give the new one another name"
    )]
    OtherRoot {
        /// The static.
        root: String,
        /// What the primary has.
        theirs: String,
        /// What this program has.
        ours: String,
    },
}

/// Gathers the marked types that are reached from what is registered.
#[derive(Default)]
pub struct Types {
    pub(crate) definitions: BTreeMap<String, Definition>,
    pub(crate) shared: BTreeMap<String, SharedType>,
    seen: BTreeSet<String>,
    by_type: HashMap<TypeId, String>,
    /// Two different types under one name, by that name.
    pub(crate) clashes: BTreeSet<String>,
}

/// How objects behind a `Ref` are made of bytes.
#[derive(Clone)]
pub(crate) struct SharedType {
    pub shape: Shape,
    pub create: crate::store::Create,
}

impl Types {
    /// Whether `name` is met for the first time; then it is to be [defined](Self::define).
    pub fn enter<T: 'static>(&mut self, name: &str) -> bool {
        let known = self.by_type.insert(TypeId::of::<T>(), name.to_owned());
        let new_name = self.seen.insert(name.to_owned());
        if known.is_none() && !new_name {
            self.clashes.insert(name.to_owned());
        }
        known.is_none() && new_name
    }

    /// A type that a `Ref` leads to; whether it is met for the first time.
    pub(crate) fn share(&mut self, name: String, of: SharedType) -> bool {
        self.shared.insert(name, of).is_none()
    }

    /// Says what a marked type is made of.
    pub fn define(&mut self, name: &str, definition: Definition) {
        self.definitions.insert(name.to_owned(), definition);
    }
}

/// How what a primary of another version sends is read here.
#[derive(Default)]
pub struct Plans {
    fields: HashMap<String, Vec<Option<usize>>>,
    variants: HashMap<String, Vec<u64>>,
    theirs: Schema,
}

impl Plans {
    /// For each field of the primary, in its order, the place of the field here. `None`: everything is the same.
    pub(crate) fn fields(&self, type_name: &str) -> Option<&[Option<usize>]> {
        self.fields.get(type_name).map(Vec::as_slice)
    }

    pub(crate) fn variant(&self, type_name: &str, number: u64) -> Option<u64> {
        match self.variants.get(type_name) {
            None => Some(number),
            Some(variants) => variants.get(usize::try_from(number).ok()?).copied(),
        }
    }

    pub(crate) fn shape_of(&self, type_name: &str, number: usize) -> Option<Shape> {
        let (name, variant) = type_name.split_once("::<").unwrap_or((type_name, ""));
        let variant = variant.trim_end_matches('>');
        let definition = self.theirs.types.get(name)?;
        let variant = definition.variants.iter().find(|v| variant.is_empty() || v.name == variant)?;
        Some(variant.fields.get(number)?.shape.clone())
    }

    pub(crate) fn is_enum(&self, name: &str) -> bool {
        self.theirs.types.get(name).is_some_and(|definition| definition.is_enum)
    }

    /// What the fields of a type or of one of its variants look like.
    pub(crate) fn parts(&self, name: &str, variant: u64) -> Option<Vec<Shape>> {
        let variant = self.theirs.types.get(name)?.variants.get(usize::try_from(variant).ok()?)?;
        Some(variant.fields.iter().map(|field| field.shape.clone()).collect())
    }

    pub(crate) fn function(&self, number: u64) -> Option<&str> {
        self.theirs.functions.get(usize::try_from(number).ok()?).map(String::as_str)
    }

    pub(crate) fn shared(&self, number: u64) -> Option<&(String, Shape)> {
        self.theirs.shared.get(usize::try_from(number).ok()?)
    }
}

/// The name under which the plan of an enum's variant is found, as the macros write it.
fn variant_key(type_name: &str, variant: &str) -> String {
    format!("{type_name}::<{variant}")
}

impl Schema {
    /// How to read what a primary with the schema `theirs` sends, or why that cannot be.
    pub fn plans(&self, theirs: Schema) -> Result<Plans, Incompatible> {
        let mut plans = Plans::default();
        for (name, definition) in &theirs.types {
            let Some(ours) = self.types.get(name) else { continue };
            if ours.is_enum != definition.is_enum {
                return Err(Incompatible::OtherKind(name.clone()));
            }
            let mut numbers = Vec::new();
            for variant in &definition.variants {
                let place = ours.variants.iter().position(|own| own.name == variant.name);
                let Some((place, own)) = place.map(|place| (place, &ours.variants[place])) else {
                    let (type_name, variant) = (name.clone(), variant.name.clone());
                    return Err(Incompatible::NoVariant { type_name, variant });
                };
                numbers.push(place as u64);
                if let Some(plan) = plan_fields(name, own, variant)? {
                    let key = if ours.is_enum { variant_key(name, &variant.name) } else { name.clone() };
                    plans.fields.insert(key, plan);
                }
            }
            if numbers.iter().enumerate().any(|(place, number)| place as u64 != *number) {
                plans.variants.insert(name.clone(), numbers);
            }
        }
        for (name, root) in &theirs.roots {
            if let Some(own) = self.roots.get(name)
                && (own.of != root.of || own.shape != root.shape)
            {
                let (theirs, ours) = (root.of.clone(), own.of.clone());
                return Err(Incompatible::OtherRoot { root: name.clone(), theirs, ours });
            }
        }
        if let Some(gone) = theirs.functions.iter().find(|name| !self.functions.contains(name)) {
            return Err(Incompatible::NoFunction(gone.clone()));
        }
        plans.theirs = theirs;
        Ok(plans)
    }
}

fn plan_fields(
    type_name: &str,
    ours: &Variant,
    theirs: &Variant,
) -> Result<Option<Vec<Option<usize>>>, Incompatible> {
    let mut plan = Vec::new();
    for field in &theirs.fields {
        let by_name = ours.fields.iter().position(|own| own.name == field.name);
        let place = by_name.or_else(|| ours.fields.iter().position(|own| own.was.contains(&field.name)));
        if let Some(place) = place {
            let own = &ours.fields[place];
            if own.of != field.of || own.shape != field.shape {
                return Err(Incompatible::OtherType {
                    type_name: type_name.to_owned(),
                    field: own.name.clone(),
                    theirs: field.of.clone(),
                    ours: own.of.clone(),
                });
            }
        }
        plan.push(place);
    }
    for (place, own) in ours.fields.iter().enumerate() {
        if !plan.contains(&Some(place)) && !own.has_default {
            let (type_name, field) = (type_name.to_owned(), own.name.clone());
            return Err(Incompatible::NoDefault { type_name, field });
        }
    }
    let same =
        plan.iter().enumerate().all(|(place, to)| *to == Some(place)) && plan.len() == ours.fields.len();
    Ok(if same { None } else { Some(plan) })
}
