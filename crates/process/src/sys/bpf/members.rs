//! Members of the running kernel's structures, each by its offset.

/// Makes a `struct Members` of offsets, each with the structure that it is of and its path in that.
macro_rules! members {
    ($($name:ident: $structure:literal, $path:literal;)*) => {
        /// Offsets of members of the running kernel's structures.
        #[derive(Debug, Clone, Copy)]
        pub struct Members { $(pub $name: u64,)* }

        impl Members {
            fn find(layout: &$crate::sys::bpf::btf::Layout<'_>) -> Result<Self, $crate::sys::bpf::iterator::Unavailable> {
                let member = |structure: &str, path: &str| {
                    let missing = || $crate::sys::bpf::iterator::Unavailable::Missing(format!("{structure}.{path}"));
                    layout.offset(structure, path)?.map(u64::from).ok_or_else(missing)
                };
                Ok(Self { $($name: member($structure, $path)?,)* })
            }
        }
    };
}

pub(super) use members;
