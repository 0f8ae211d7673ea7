//! The table of types, read once from its text.

use std::collections::HashMap;
use std::sync::LazyLock;

static TEXT: &str = include_str!("../../openapi/types.txt");

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(TEXT));

/// A struct of the API.
#[derive(Debug)]
pub struct Definition {
    /// Its full name, such as `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    fields: Vec<Field>,
}

/// A field of a struct.
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// Whether it stays even when empty.
    pub required: bool,
    /// How a strategic merge patch treats it.
    pub strategy: Option<Strategy>,
}

/// How a strategic merge patch treats a field that it does not treat as plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Items of the list are merged rather than the list replaced.
    pub merge: bool,
    /// A patch may say which keys of the old stay.
    pub retain_keys: bool,
    /// The field is replaced as a whole.
    pub replace: bool,
    /// What tells the items of a merged list apart; empty where they are plain values.
    pub merge_key: &'static str,
}

/// The type of a field.
#[derive(Debug)]
pub enum Type {
    /// One value.
    Leaf(Leaf),
    /// A list.
    Array(Box<Type>),
    /// Values by name.
    Map(Box<Type>),
}

/// The type of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Text.
    String,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Float,
    /// A truth value.
    Bool,
    /// Bytes in base64.
    Bytes,
    /// A moment, to the second.
    Time,
    /// A moment, to the microsecond.
    MicroTime,
    /// An amount.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// Anything at all.
    Any,
    /// A struct, by its place in the table.
    Struct(u16),
}

impl Definition {
    /// A field by its name in JSON.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        self.fields.get(at)
    }

    /// All fields, by name.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The name without package and version, such as `Pod`.
    #[must_use]
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

impl Leaf {
    /// The struct that this is.
    #[must_use]
    pub fn definition(self) -> Option<&'static Definition> {
        match self {
            Leaf::Struct(at) => TABLE.definitions.get(usize::from(at)),
            _ => None,
        }
    }
}

impl Type {
    /// The struct that this is, or that its items are.
    #[must_use]
    pub fn definition(&self) -> Option<&'static Definition> {
        match self {
            Type::Leaf(leaf) => leaf.definition(),
            Type::Array(inner) | Type::Map(inner) => inner.definition(),
        }
    }

    /// As a stock server names the type in its messages.
    #[must_use]
    pub fn go_name(&self) -> String {
        match self {
            Type::Array(inner) => format!("[]{}", inner.go_name()),
            Type::Map(inner) => format!("map[string]{}", inner.go_name()),
            Type::Leaf(leaf) => match leaf {
                Leaf::String => "string".to_owned(),
                Leaf::Int32 => "int32".to_owned(),
                Leaf::Int64 => "int64".to_owned(),
                Leaf::Float => "float64".to_owned(),
                Leaf::Bool => "bool".to_owned(),
                Leaf::Bytes => "[]uint8".to_owned(),
                Leaf::Time => "v1.Time".to_owned(),
                Leaf::MicroTime => "v1.MicroTime".to_owned(),
                Leaf::Quantity => "resource.Quantity".to_owned(),
                Leaf::IntOrString => "intstr.IntOrString".to_owned(),
                Leaf::Any => "runtime.RawExtension".to_owned(),
                Leaf::Struct(_) => leaf.definition().map(go_struct).unwrap_or_default(),
            },
        }
    }
}

fn go_struct(definition: &Definition) -> String {
    let mut parts = definition.name.rsplit('.');
    let name = parts.next().unwrap_or_default();
    format!("{}.{name}", parts.next().unwrap_or_default())
}

/// A type by its full name.
#[must_use]
pub fn definition(name: &str) -> Option<&'static Definition> {
    TABLE.by_name.get(name).and_then(|at| TABLE.definitions.get(usize::from(*at)))
}

struct Table {
    definitions: Vec<Definition>,
    by_name: HashMap<&'static str, u16>,
}

impl Table {
    fn read(text: &'static str) -> Self {
        let mut by_name = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let name = line.split(' ').next().unwrap_or_default();
            by_name.insert(name, u16::try_from(at).expect("there are a few hundred types"));
        }
        let definitions = text.lines().map(|line| read_definition(line, &by_name)).collect();
        Self { definitions, by_name }
    }
}

fn read_definition(line: &'static str, by_name: &HashMap<&'static str, u16>) -> Definition {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let mut fields: Vec<_> = words.filter_map(|word| read_field(word, by_name)).collect();
    fields.sort_by_key(|field| field.name);
    Definition { name, fields }
}

fn read_field(word: &'static str, by_name: &HashMap<&'static str, u16>) -> Option<Field> {
    let (name, rest) = word.split_once(':')?;
    let (ty, strategy) = rest.split_once('~').unwrap_or((rest, ""));
    let (ty, required) = ty.strip_suffix('!').map_or((ty, false), |ty| (ty, true));
    let strategy = (!strategy.is_empty()).then(|| {
        let (names, merge_key) = strategy.split_once('=').unwrap_or((strategy, ""));
        let has = |wanted: &str| names.split(',').any(|name| name == wanted);
        Strategy { merge: has("merge"), retain_keys: has("retainKeys"), replace: has("replace"), merge_key }
    });
    Some(Field { name, ty: read_type(ty, by_name), required, strategy })
}

fn read_type(word: &str, by_name: &HashMap<&'static str, u16>) -> Type {
    if let Some(inner) = word.strip_prefix("[]") {
        return Type::Array(Box::new(read_type(inner, by_name)));
    }
    if let Some(inner) = word.strip_prefix("{}") {
        return Type::Map(Box::new(read_type(inner, by_name)));
    }
    Type::Leaf(match word {
        "string" => Leaf::String,
        "int32" => Leaf::Int32,
        "int64" => Leaf::Int64,
        "float" => Leaf::Float,
        "bool" => Leaf::Bool,
        "bytes" => Leaf::Bytes,
        "time" => Leaf::Time,
        "microtime" => Leaf::MicroTime,
        "quantity" => Leaf::Quantity,
        "intorstring" => Leaf::IntOrString,
        _ => word.strip_prefix('@').and_then(|name| by_name.get(name)).map_or(Leaf::Any, |at| Leaf::Struct(*at)),
    })
}
