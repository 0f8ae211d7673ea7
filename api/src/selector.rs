//! Label and field selectors: parsed from a request's text or taken from a spec, and matched.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;

use crate::names;

/// An object's labels.
pub type Labels = BTreeMap<String, String>;

/// Why a selector cannot be read. The text is what a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label is there and its value is the one given.
    Equals,
    /// The label is absent or has another value.
    NotEquals,
    /// The label's value is one of those given.
    In,
    /// The label is absent or its value is none of those given.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label's value is a whole number above the one given.
    GreaterThan,
    /// The label's value is a whole number below the one given.
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// What to compare with, in order.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether labels meet the condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.key).map(String::as_str))
    }

    /// Whether a label's value, or its absence, meets the condition.
    #[must_use]
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|wanted| wanted == value);
        let number = |text: &str| text.parse::<i64>().ok();
        match (self.operator, value) {
            (Operator::Equals | Operator::In, Some(value)) => listed(value),
            (Operator::NotEquals | Operator::NotIn, Some(value)) => !listed(value),
            (Operator::NotEquals | Operator::NotIn | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => {
                true
            }
            (Operator::GreaterThan | Operator::LessThan, Some(value)) => {
                match (number(value), self.values.first().and_then(|bound| number(bound))) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

/// Conditions that all must hold. Without any, everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The conditions, ordered by key.
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// The selector that matches everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// The selector that matches no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A selector from a plain map, as Services have it.
    #[must_use]
    pub fn from_map(map: &Labels) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: map.iter().map(equals).collect(), nothing: false }
    }

    /// A selector from a spec; absent selects nothing, empty everything.
    ///
    /// # Errors
    /// When an operator is unknown.
    pub fn from_spec(selector: Option<&metav1::LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else {
            return Ok(Self::nothing());
        };
        let mut result = selector.match_labels.as_ref().map(Self::from_map).unwrap_or_default();
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = expression.values.clone().unwrap_or_default();
            result.requirements.push(Requirement { key: expression.key.clone(), operator, values });
        }
        result.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(result)
    }

    /// Whether labels meet every condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether labels, looked up by key, meet every condition.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches_value(label(&requirement.key)))
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator, values }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let mut sorted = values.clone();
            sorted.sort();
            let values = sorted.join(",");
            match operator {
                Operator::Equals => write!(f, "{key}={values}")?,
                Operator::NotEquals => write!(f, "{key}!={values}")?,
                Operator::In => write!(f, "{key} in ({values})")?,
                Operator::NotIn => write!(f, "{key} notin ({values})")?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{values}")?,
                Operator::LessThan => write!(f, "{key}<{values}")?,
            }
        }
        Ok(())
    }
}

/// Whether labels match a spec's selector; an unknown operator matches nothing.
#[must_use]
pub fn matches(selector: &metav1::LabelSelector, labels: &Labels) -> bool {
    let equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    if !selector.match_labels.iter().flatten().all(equal) {
        return false;
    }
    selector.match_expressions.iter().flatten().all(|expression| {
        let value = labels.get(&expression.key);
        let listed = value.is_some_and(|value| expression.values.iter().flatten().any(|wanted| wanted == value));
        match expression.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    })
}

/// Reads a label selector as it stands in `?labelSelector=`.
///
/// # Errors
/// Tells what was found where something else was expected.
pub fn parse_label_selector(text: &str) -> Result<Selector, SelectorError> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let mut requirements =
        parser.parse().map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?;
    requirements.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Selector { requirements, nothing: false })
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Symbol(symbol) => symbol,
            Token::End => "",
        }
    }

    fn is(&self, text: &str) -> bool {
        *self != Token::End && self.text() == text
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            found.push(Token::Symbol(symbol));
            rest = rest[symbol.len()..].trim_start();
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].to_owned()));
            rest = rest[end..].trim_start();
        }
    }
    found
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn parse(&mut self) -> Parsed<Vec<Requirement>> {
        let mut requirements = Vec::new();
        if *self.peek() == Token::End {
            return Ok(requirements);
        }
        loop {
            match self.peek() {
                Token::Word(_) => {}
                token if token.is("!") => {}
                token => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token.text()));
                }
            }
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(requirements),
                token if token.is(",") => match self.peek() {
                    Token::Word(_) => {}
                    next if next.is("!") => {}
                    next => {
                        return Err(format!("found '{}', expected: identifier after ','", next.text()));
                    }
                },
                token => {
                    return Err(format!("found '{}', expected: ',' or 'end of string'", token.text()));
                }
            }
        }
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        let negated = self.peek().is("!");
        if negated {
            self.at += 1;
        }
        let Token::Word(key) = self.next() else {
            self.at -= 1;
            return Err(format!("found '{}', expected: identifier", self.peek().text()));
        };
        if let Some(wrong) = names::qualified_name(&key).first() {
            return Err(format!("key: Invalid value: {key:?}: {wrong}"));
        }
        if negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        let operator = match self.peek() {
            Token::End => None,
            token if token.is(",") => None,
            token => Some(
                operator(token.text())
                    .ok_or_else(|| format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", token.text()))?,
            ),
        };
        let Some(operator) = operator else {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        };
        self.at += 1;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.value()?],
        };
        checked(Requirement { key, operator, values })
    }

    fn value(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            Token::End => Ok(String::new()),
            token if token.is(",") => Ok(String::new()),
            token => Err(format!("found '{}', expected: identifier", token.text())),
        }
    }

    fn values(&mut self) -> Parsed<Vec<String>> {
        let open = self.next();
        if !open.is("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        token if token.is(",") => {
                            if self.peek().is(")") {
                                values.push(String::new());
                            }
                        }
                        token if token.is(")") => return Ok(values),
                        token => {
                            return Err(format!("found '{}', expected: ',' or ')'", token.text()));
                        }
                    }
                }
                token if token.is(",") => values.push(String::new()),
                token if token.is(")") => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                token => {
                    return Err(format!("found '{}', expected: ',', ')' or identifier", token.text()));
                }
            }
        }
    }
}

fn operator(text: &str) -> Option<Operator> {
    Some(match text {
        "=" | "==" => Operator::Equals,
        "!=" => Operator::NotEquals,
        "in" => Operator::In,
        "notin" => Operator::NotIn,
        ">" => Operator::GreaterThan,
        "<" => Operator::LessThan,
        _ => return None,
    })
}

fn checked(requirement: Requirement) -> Parsed<Requirement> {
    for (index, value) in requirement.values.iter().enumerate() {
        if matches!(requirement.operator, Operator::GreaterThan | Operator::LessThan) {
            if value.parse::<i64>().is_err() {
                return Err(format!(
                    "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
        } else if let Some(wrong) = names::label_value(value).first() {
            let key = &requirement.key;
            return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {wrong}"));
        }
    }
    Ok(requirement)
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field's path, such as `spec.nodeName`.
    pub field: String,
    /// Whether the field must have the value or must not.
    pub equal: bool,
    /// The value.
    pub value: String,
}

/// Conditions on fields that all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// The conditions, as written.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Whether an object matches; `field` gives the value of a field, empty when it is unset.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> std::borrow::Cow<'a, str>) -> bool {
        self.requirements.iter().all(|wanted| (field(&wanted.field) == wanted.value) == wanted.equal)
    }

    /// Whether there is no condition.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that a field must have, when the selector says so.
    #[must_use]
    pub fn required(&self, field: &str) -> Option<&str> {
        let wanted = self.requirements.iter().find(|wanted| wanted.equal && wanted.field == field)?;
        Some(&wanted.value)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, FieldRequirement { field, equal, value }) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let escaped = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{field}{}{escaped}", if *equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

/// Reads a field selector as it stands in `?fieldSelector=`. A backslash keeps `\`, `,` and `=` from their meaning.
///
/// # Errors
/// Tells which term is none.
pub fn parse_field_selector(text: &str) -> Result<FieldSelector, SelectorError> {
    let mut requirements = Vec::new();
    for term in split_unescaped(text).into_iter().filter(|term| !term.is_empty()) {
        let invalid = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
        let (field, equal, value) = split_term(term).ok_or_else(invalid)?;
        let value = unescape(value)?;
        requirements.push(FieldRequirement { field: field.to_owned(), equal, value });
    }
    Ok(FieldSelector { requirements })
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let (at, operator) = (0..term.len()).find_map(|at| {
        let rest = term.as_bytes().get(at..)?;
        ["!=", "==", "="].into_iter().find(|operator| rest.starts_with(operator.as_bytes())).map(|found| (at, found))
    })?;
    Some((&term[..at], operator != "!=", &term[at + operator.len()..]))
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => plain.push(next),
                Some(next) => {
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: \\{next}")));
                }
                None => {
                    return Err(SelectorError("invalid field selector: invalid escape sequence: \\".to_owned()));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            other => plain.push(other),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn label_selectors_match() {
        let web = labels(&[("app", "web"), ("tier", "2")]);
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (web, db)", true),
            ("app notin (web,db)", false),
            ("other notin (a)", true),
            ("!other", true),
            ("!app", false),
            ("tier>1", true),
            ("tier<2", false),
            ("app=", false),
            ("app in (,web)", true),
        ] {
            assert_eq!(parse_label_selector(text).unwrap().matches(&web), expected, "{text}");
        }
    }

    #[test]
    fn label_selectors_print_and_complain() {
        assert_eq!(parse_label_selector("b in (z,a),a!=1,!c").unwrap().to_string(), "a!=1,b in (a,z),!c");
        let error = |text| parse_label_selector(text).unwrap_err().to_string();
        assert_eq!(error("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(error("a,"), "unable to parse requirement: found '', expected: identifier after ','");
        assert_eq!(error("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert!(error("a=-").starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid"));
        assert!(error("!").contains("expected: identifier"));
    }

    #[test]
    fn spec_selectors() {
        let spec = metav1::LabelSelector {
            match_labels: Some(labels(&[("app", "web")])),
            match_expressions: Some(vec![metav1::LabelSelectorRequirement {
                key: "tier".into(),
                operator: "NotIn".into(),
                values: Some(vec!["1".into()]),
            }]),
        };
        let web = labels(&[("app", "web")]);
        assert!(matches(&spec, &web));
        assert!(Selector::from_spec(Some(&spec)).unwrap().matches(&web));
        assert!(!Selector::from_spec(None).unwrap().matches(&web));
        assert!(Selector::from_spec(Some(&metav1::LabelSelector::default())).unwrap().matches(&web));
    }

    #[test]
    fn field_selectors() {
        let selector = parse_field_selector("metadata.name=a\\,b,status.phase!=Running,").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert_eq!(selector.to_string(), "metadata.name=a\\,b,status.phase!=Running");
        let of = |field: &str| {
            if field == "metadata.name" { "a,b".into() } else { "Pending".into() }
        };
        assert!(selector.matches(of));
        let error = parse_field_selector("nonsense").unwrap_err().to_string();
        assert_eq!(error, "invalid selector: 'nonsense'; can't understand 'nonsense'");
    }
}
