//! Faults, and the paths of the fields they are about.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use serde_json::Value;

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A value is missing.
    Required,
    /// A value is malformed or out of bounds.
    Invalid,
    /// A value is not one of those there are.
    NotSupported,
    /// A value that must be unique is there twice.
    Duplicate,
    /// A value may not be given here.
    Forbidden,
    /// A text has too many bytes.
    TooLong,
    /// A list has too many items.
    TooMany,
    /// What the value refers to is not there.
    NotFound,
}

impl FaultKind {
    /// The machine's reason in a status cause.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// One fault of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// The path of the field, such as `spec.containers[0].name`.
    pub field: String,
    /// What people read, without the field: `Invalid value: "x": …`.
    pub body: String,
}

impl FieldError {
    /// The fault as a cause in a status.
    #[must_use]
    pub fn into_cause(self) -> StatusCause {
        StatusCause { reason: Some(self.kind.reason().to_owned()), message: Some(self.body), field: Some(self.field) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body)
    }
}

/// The path of a field. Nothing is put together until it is printed.
#[derive(Clone, Copy, Debug)]
pub struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Field(&'p str),
    Index(usize),
    Key(&'p str),
}

impl<'p> Path<'p> {
    /// A field of the object itself; an empty name is the object as a whole, printed `[]`.
    #[must_use]
    pub fn root(name: &'p str) -> Self {
        Self { parent: None, step: Step::Field(name) }
    }

    /// A field below.
    #[must_use]
    pub fn child(&'p self, name: &'p str) -> Self {
        Self { parent: Some(self), step: Step::Field(name) }
    }

    /// An item of a list.
    #[must_use]
    pub fn index(&'p self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    /// A value in a map.
    #[must_use]
    pub fn key(&'p self, key: &'p str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Field("") => f.write_str("[]"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// The faults found so far.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<FieldError>);

impl Faults {
    fn add(&mut self, kind: FaultKind, path: &Path<'_>, value: Option<&Value>, detail: &str) {
        let mut body = kind.text().to_owned();
        if let Some(value) = value {
            body.push_str(": ");
            body.push_str(&value.to_string());
        }
        if !detail.is_empty() {
            body.push_str(": ");
            body.push_str(detail);
        }
        self.0.push(FieldError { kind, field: path.to_string(), body });
    }

    /// A value is missing.
    pub fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.add(FaultKind::Required, path, None, detail);
    }

    /// A value is wrong.
    pub fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.add(FaultKind::Invalid, path, Some(&value.into()), detail);
    }

    /// A value is wrong for each of some reasons.
    pub fn complaints(&mut self, path: &Path<'_>, value: &str, complaints: Vec<String>) {
        for complaint in complaints {
            self.invalid(path, value, &complaint);
        }
    }

    /// A value is none of those there are.
    pub fn not_supported(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        self.add(FaultKind::NotSupported, path, Some(&value.into()), &detail);
    }

    /// A value that must be unique is there twice.
    pub fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.add(FaultKind::Duplicate, path, Some(&value.into()), "");
    }

    /// A value may not be given.
    pub fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.add(FaultKind::Forbidden, path, None, detail);
    }

    /// A text has too many bytes.
    pub fn too_long(&mut self, path: &Path<'_>, bytes: usize) {
        self.add(FaultKind::TooLong, path, None, &format!("may not be more than {bytes} bytes"));
    }

    /// A list has too many items.
    pub fn too_many(&mut self, path: &Path<'_>, actual: usize, limit: usize) {
        let detail = format!("must have at most {limit} items");
        self.add(FaultKind::TooMany, path, Some(&actual.into()), &detail);
    }

    /// What a value refers to is not there.
    pub fn not_found(&mut self, path: &Path<'_>, value: &str) {
        self.add(FaultKind::NotFound, path, Some(&value.into()), "");
    }

    /// A value may not change.
    pub fn immutable(&mut self, old: &Value, new: &Value, path: &Path<'_>) {
        if old != new {
            self.invalid(path, new.clone(), "field is immutable");
        }
    }

    /// A number must not be negative.
    pub fn not_negative(&mut self, value: &Value, path: &Path<'_>) {
        if let Some(number) = value.as_i64().filter(|number| *number < 0) {
            self.invalid(path, number, "must be greater than or equal to 0");
        }
    }

    /// A text must be one of those there are. An empty or absent one is left to the caller.
    pub fn one_of(&mut self, value: &Value, path: &Path<'_>, supported: &[&str]) {
        if let Some(text) = value.as_str().filter(|text| !supported.contains(text)) {
            self.not_supported(path, text, supported);
        }
    }

    /// A text must be there, and one of those there are.
    pub fn required_one_of(&mut self, value: &Value, path: &Path<'_>, supported: &[&str]) {
        if text(value).is_empty() {
            self.required(path, "");
        } else {
            self.one_of(value, path, supported);
        }
    }

    /// A text must be there.
    pub fn required_text(&mut self, value: &Value, path: &Path<'_>) -> bool {
        let missing = text(value).is_empty();
        if missing {
            self.required(path, "");
        }
        !missing
    }
}

/// The text a value is, empty when it is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items a value has, none when it is no list.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The entries a value has, none when it is no object.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// Whether a value is there.
pub(super) fn given(value: &Value) -> bool {
    !value.is_null()
}
