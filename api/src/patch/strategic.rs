//! The strategic merge patch, with its directives `$patch`, `$retainKeys`, `$setElementOrder/…` and
//! `$deleteFromPrimitiveList/…`. The order of merged lists is a stock server's.

use serde_json::{Map, Value};

use super::does_not_fit;
use crate::schema::{Definition, Strategy, Type};
use crate::status::ApiError;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// What is known of the type at a place.
#[derive(Clone, Copy)]
enum Shape {
    Struct(&'static Definition),
    /// A map whose values have this type.
    Map(&'static Type),
    Unknown,
}

impl Shape {
    fn of(ty: Option<&'static Type>) -> Self {
        match ty {
            Some(Type::Map(inner)) => Self::Map(inner),
            Some(Type::Leaf(leaf)) => leaf.definition().map_or(Self::Unknown, Self::Struct),
            Some(Type::Array(_)) | None => Self::Unknown,
        }
    }

    fn field(self, name: &str) -> (Option<&'static Type>, Option<Strategy>) {
        match self {
            Self::Struct(definition) => match definition.field(name) {
                Some(field) => (Some(&field.ty), field.strategy),
                None => (None, None),
            },
            Self::Map(inner) => (Some(inner), None),
            Self::Unknown => (None, None),
        }
    }
}

/// Merges a patch into an object.
pub(super) fn merge(object: Value, patch: Object, definition: Option<&'static Definition>) -> Result<Value, ApiError> {
    let Value::Object(object) = object else { return Err(ApiError::bad_request("invalid JSON document")) };
    let shape = definition.map_or(Shape::Unknown, Shape::Struct);
    merge_object(object, patch, shape).map(Value::Object)
}

fn merge_object(mut object: Object, mut patch: Object, shape: Shape) -> Result<Object, ApiError> {
    match patch.remove(PATCH).as_ref().map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => return Ok(clean_object(patch)),
        Some("delete") => return Ok(Object::new()),
        Some(other) => return Err(does_not_fit(&format!("Unknown patch type found: {other}"))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain(&mut object, &patch, &keys)?;
    }
    let (directives, fields): (Vec<_>, Vec<_>) =
        patch.into_iter().partition(|(key, _)| key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES));
    let mut directives: Object = directives.into_iter().collect();
    for (key, value) in fields {
        let order = directives.remove(&format!("{SET_ORDER}{key}"));
        let deleted = directives.remove(&format!("{DELETE_PRIMITIVES}{key}"));
        if value.is_null() {
            object.remove(&key);
            continue;
        }
        let mut old = object.remove(&key);
        if let (Some(Value::Array(items)), Some(Value::Array(deleted))) = (&mut old, &deleted) {
            items.retain(|item| !deleted.contains(item));
        }
        let (ty, strategy) = shape.field(&key);
        object.insert(key, merge_value(old, value, ty, strategy, order)?);
    }
    for (directive, argument) in directives {
        apply_directive(&mut object, &directive, argument, shape)?;
    }
    Ok(object)
}

/// A list directive whose list is not otherwise in the patch.
fn apply_directive(object: &mut Object, directive: &str, argument: Value, shape: Shape) -> Result<(), ApiError> {
    let Value::Array(argument) = argument else {
        return Err(ApiError::bad_request(format!("invalid patch format of {directive}")));
    };
    if let Some(field) = directive.strip_prefix(DELETE_PRIMITIVES) {
        if let Some(items) = object.get_mut(field).and_then(Value::as_array_mut) {
            items.retain(|item| !argument.contains(item));
        }
    } else if let Some(field) = directive.strip_prefix(SET_ORDER) {
        let (_, strategy) = shape.field(field);
        let key = strategy.map_or("", |strategy| strategy.merge_key);
        if let Some(Value::Array(items)) = object.remove(field) {
            let original = items.clone();
            object.insert(field.to_owned(), Value::Array(ordered(items, &argument, &original, key)));
        }
    }
    Ok(())
}

/// Removes from the old what the patch does not say to keep.
fn retain(object: &mut Object, patch: &Object, keys: &Value) -> Result<(), ApiError> {
    let keys = keys.as_array().ok_or_else(|| ApiError::bad_request("invalid patch format of retainKeys"))?;
    let listed = |key: &str| keys.iter().any(|wanted| wanted.as_str() == Some(key));
    if patch.iter().any(|(key, value)| !value.is_null() && !key.starts_with('$') && !listed(key)) {
        return Err(ApiError::bad_request("invalid patch format of retainKeys"));
    }
    object.retain(|key, _| listed(key));
    Ok(())
}

fn merge_value(
    old: Option<Value>,
    new: Value,
    ty: Option<&'static Type>,
    strategy: Option<Strategy>,
    order: Option<Value>,
) -> Result<Value, ApiError> {
    match (old, new) {
        (Some(Value::Object(old)), Value::Object(new)) if !strategy.is_some_and(|strategy| strategy.replace) => {
            merge_object(old, new, Shape::of(ty)).map(Value::Object)
        }
        (old, Value::Array(new)) => match strategy.filter(|strategy| strategy.merge) {
            Some(strategy) => {
                let old = match old {
                    Some(Value::Array(old)) => old,
                    _ => Vec::new(),
                };
                let inner = match ty {
                    Some(Type::Array(inner)) => Some(&**inner),
                    _ => None,
                };
                let order = match order {
                    Some(Value::Array(order)) => Some(order),
                    _ => None,
                };
                merge_list(old, new, inner, strategy.merge_key, order).map(Value::Array)
            }
            None => Ok(clean(Value::Array(new))),
        },
        (_, new) => Ok(clean(new)),
    }
}

fn merge_list(
    mut old: Vec<Value>,
    patch: Vec<Value>,
    inner: Option<&'static Type>,
    key: &str,
    order: Option<Vec<Value>>,
) -> Result<Vec<Value>, ApiError> {
    let original = old.clone();
    let mut wanted = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).and_then(Value::as_str) {
            Some("delete") => {
                let id = merge_id(&item, key)?.clone();
                old.retain(|candidate| candidate.get(key) != Some(&id));
            }
            Some("replace") => replace = true,
            _ => wanted.push(item),
        }
    }
    if replace {
        return Ok(wanted.into_iter().map(clean).collect());
    }
    let order = order.unwrap_or_else(|| wanted.clone());
    for item in wanted {
        merge_item(&mut old, item, inner, key)?;
    }
    Ok(ordered(old, &order, &original, key))
}

fn merge_id<'a>(item: &'a Value, key: &str) -> Result<&'a Value, ApiError> {
    item.get(key).ok_or_else(|| does_not_fit(&format!("map: {item} does not contain declared merge key: {key}")))
}

fn merge_item(items: &mut Vec<Value>, item: Value, inner: Option<&'static Type>, key: &str) -> Result<(), ApiError> {
    if key.is_empty() {
        if !items.contains(&item) {
            items.push(item);
        }
        return Ok(());
    }
    let id = merge_id(&item, key)?;
    match items.iter().position(|candidate| candidate.get(key) == Some(id)) {
        Some(at) => match (items[at].take(), item) {
            (Value::Object(old), Value::Object(new)) => {
                items[at] = Value::Object(merge_object(old, new, Shape::of(inner))?);
            }
            (_, item) => items[at] = clean(item),
        },
        None => items.push(clean(item)),
    }
    Ok(())
}

/// Orders a merged list: what `order` names comes in its order, the rest in the original's; where both are in the
/// original, the original decides between the two, otherwise what `order` names goes first.
fn ordered(items: Vec<Value>, order: &[Value], original: &[Value], key: &str) -> Vec<Value> {
    let same =
        |a: &Value, b: &Value| if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) };
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item));
    let (mut named, mut rest): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_cached_key(|item| place(order, item));
    rest.sort_by_cached_key(|item| place(original, item).unwrap_or(usize::MAX));
    let mut all = Vec::with_capacity(named.len() + rest.len());
    let (mut named, mut rest) = (named.into_iter().peekable(), rest.into_iter().peekable());
    loop {
        let take_rest = match (named.peek(), rest.peek()) {
            (Some(a), Some(b)) => match (place(original, a), place(original, b)) {
                (Some(a), Some(b)) => b < a,
                _ => false,
            },
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => return all,
        };
        all.extend(if take_rest { rest.next() } else { named.next() });
    }
}

/// A part of a patch that meets nothing old: without nulls and directives.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(clean_object(object)),
        Value::Array(items) => Value::Array(
            items.into_iter().filter(|item| item.get(PATCH).is_none_or(|kind| kind == "merge")).map(clean).collect(),
        ),
        plain => plain,
    }
}

fn clean_object(object: Object) -> Object {
    if object.get(PATCH).and_then(Value::as_str) == Some("delete") {
        return Object::new();
    }
    let directive = |key: &str| {
        key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES)
    };
    object
        .into_iter()
        .filter(|(key, value)| !value.is_null() && !directive(key))
        .map(|(key, value)| (key, clean(value)))
        .collect()
}
