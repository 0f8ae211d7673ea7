//! The text over which stock reckons the checksums of its state files.
//!
//! Stock prints the Go value with its types (go-spew, `%#v`, sorted keys) and takes FNV-1a of that. To read and write
//! files that a stock kubelet takes, the same text is made here from a description of the value.

/// A Go value, as far as state files have them.
#[derive(Clone, Debug)]
pub enum Go {
    /// A string, of the type `string` or one based on it.
    Str(&'static str, String),
    /// A number of the named type.
    Number(&'static str, i128),
    /// A slice of the named type.
    Slice(&'static str, Vec<Go>),
    /// A map of the named type, in the order of its keys.
    Map(&'static str, Vec<(Go, Go)>),
    /// A struct of the named type: fields with their names.
    Struct(&'static str, Vec<(&'static str, Go)>),
    /// A slice or map of the named type that was never made.
    Nil(&'static str),
    /// A pointer to a value.
    Pointer(Box<Go>),
}

impl Go {
    /// A plain string.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str("string", text.into())
    }

    /// The checksum of the value, as `checksum.New` gives it.
    pub fn checksum(&self) -> u64 {
        let mut text = String::new();
        self.write(&mut text, false);
        u64::from(fnv32a(text.as_bytes()))
    }

    /// Prints the value; inside slices and maps the types of the elements are left out.
    fn write(&self, out: &mut String, mut inside: bool) {
        let mut value = self;
        let mut stars = 0;
        while let Self::Pointer(to) = value {
            stars += 1;
            value = to;
        }
        if stars > 0 {
            let stars = "*".repeat(stars);
            match inside {
                true => out.push_str(&format!("<{stars}>")),
                false => out.push_str(&format!("({stars}{})", value.type_name())),
            }
            inside = true;
        }
        if !inside {
            out.push_str(&format!("({})", value.type_name()));
        }
        match value {
            Self::Str(_, text) => out.push_str(text),
            Self::Number(_, number) => out.push_str(&format!("{number}")),
            Self::Slice(_, items) => {
                out.push('[');
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        out.push(' ');
                    }
                    item.write(out, true);
                }
                out.push(']');
            }
            Self::Map(_, entries) => {
                out.push_str("map[");
                for (position, (key, item)) in entries.iter().enumerate() {
                    if position > 0 {
                        out.push(' ');
                    }
                    key.write(out, true);
                    out.push(':');
                    item.write(out, true);
                }
                out.push(']');
            }
            Self::Struct(_, fields) => {
                out.push('{');
                for (position, (name, field)) in fields.iter().enumerate() {
                    if position > 0 {
                        out.push(' ');
                    }
                    out.push_str(&format!("{name}:"));
                    field.write(out, false);
                }
                out.push('}');
            }
            Self::Nil(_) => out.push_str("<nil>"),
            Self::Pointer(_) => {}
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Str(name, _)
            | Self::Number(name, _)
            | Self::Slice(name, _)
            | Self::Map(name, _)
            | Self::Struct(name, _)
            | Self::Nil(name) => name,
            Self::Pointer(_) => "",
        }
    }
}

fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
