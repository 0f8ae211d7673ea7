//! Resource quantities: exact decimal numbers with SI, binary or exponent suffixes.
//!
//! A quantity is a whole number of 10⁻⁹ up to 2⁶³−1. Anything finer is rounded away from zero, anything larger is cut
//! to that bound, as the API defines it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

const NANO: i128 = 1_000_000_000;
const LIMIT: i128 = i64::MAX as i128 * NANO;

/// The suffixes a quantity was written in, and is printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `m`, ``, `k`, `M` …: powers of ten.
    #[default]
    DecimalSi,
    /// `Ki`, `Mi` …: powers of 1024.
    BinarySi,
    /// `e3`, `E6` ….
    DecimalExponent,
}

/// An exact amount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a number with a suffix at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A number with a suffix nobody knows.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing at all.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number.
    #[must_use]
    pub fn from_value(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    /// A number of thousandths, such as millicores.
    #[must_use]
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A number of bytes, printed with binary suffixes.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// The amount in whole units, rounded away from zero.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded away from zero, at most `i64::MAX`.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// The amount in 10⁻⁹, at most `i64::MAX`.
    #[must_use]
    pub fn nano_value(&self) -> i64 {
        self.scaled(1)
    }

    /// The amount as a float, for ratios.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than a float holds")]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether this is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// −1, 0 or 1.
    #[must_use]
    pub fn sign(&self) -> i32 {
        match self.nanos.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// How it prints.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    fn scaled(&self, unit: i128) -> i64 {
        let away = if self.nanos < 0 { -(unit - 1) } else { unit - 1 };
        let value = (self.nanos + away) / unit;
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }

    fn combined(self, other: Self, nanos: i128) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: nanos.clamp(-LIMIT, LIMIT), format }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.combined(other, self.nanos + other.nanos)
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.combined(other, self.nanos - other.nanos)
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, |total, item| total + item)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// A suffix's multiplier in 10⁻⁹ (or, for those below, its divisor as a negative power of ten is folded in).
fn multiplier(suffix: &str) -> Result<(i128, Format), ParseError> {
    let decimal = |power: u32| Ok((10_i128.pow(9 + power), Format::DecimalSi));
    let binary = |power: u32| Ok(((1_i128 << (10 * power)) * NANO, Format::BinarySi));
    match suffix {
        "n" => Ok((1, Format::DecimalSi)),
        "u" => Ok((1_000, Format::DecimalSi)),
        "m" => Ok((1_000_000, Format::DecimalSi)),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => exponent(suffix),
    }
}

fn exponent(suffix: &str) -> Result<(i128, Format), ParseError> {
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
    let power: i32 = digits.parse().map_err(|_| ParseError::Suffix)?;
    // Beyond these the amount is rounded up to 10⁻⁹ or cut to the bound anyway.
    let power = power.clamp(-27, 19) + 9;
    match u32::try_from(power) {
        Ok(power) => Ok((10_i128.pow(power), Format::DecimalExponent)),
        Err(_) => Ok((0, Format::DecimalExponent)),
    }
}

/// `whole.fraction × unit`, rounded up to a whole number and cut to the bound.
fn magnitude(whole: &str, fraction: &str, unit: i128) -> i128 {
    if unit == 0 {
        // A negative power so small that anything but nothing becomes 10⁻⁹.
        return i128::from(whole.bytes().chain(fraction.bytes()).any(|digit| digit != b'0'));
    }
    let mut total: i128 = 0;
    for digit in whole.bytes() {
        total = (total * 10 + i128::from(digit - b'0')).min(LIMIT);
    }
    total = total.saturating_mul(unit).min(LIMIT);
    // From the last digit on, each step divides by ten; floors of floors lose nothing but the remainder they tell of.
    let (mut part, mut inexact) = (0_i128, false);
    for digit in fraction.bytes().rev() {
        let step = part + i128::from(digit - b'0') * unit;
        inexact |= step % 10 != 0;
        part = step / 10;
    }
    (total + part + i128::from(inexact)).min(LIMIT)
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        if !suffix.bytes().all(|byte| b"eEinumkKMGTP+-".contains(&byte) || byte.is_ascii_digit()) {
            return Err(ParseError::Format);
        }
        let (unit, format) = multiplier(suffix)?;
        let nanos = magnitude(whole, fraction, unit);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Takes whole powers of `base` out of a number: what is left, and how many.
fn factor_out(mut number: i128, base: i128) -> (i128, usize) {
    let mut power = 0;
    while number != 0 && number % base == 0 {
        number /= base;
        power += 1;
    }
    (number, power)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that allows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        if self.format == Format::BinarySi && whole && self.nanos.abs() >= 1024 * NANO {
            let (number, power) = factor_out(self.nanos / NANO, 1024);
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (number, power) = factor_out(self.nanos, 1000);
        match self.format {
            Format::DecimalExponent if power == 3 => write!(f, "{number}"),
            Format::DecimalExponent => write!(f, "{number}e{}", 3 * power as i64 - 9),
            _ => write!(f, "{number}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power]),
        }
    }
}

impl TryFrom<&ApiQuantity> for Quantity {
    type Error = ParseError;

    fn try_from(quantity: &ApiQuantity) -> Result<Self, ParseError> {
        quantity.0.parse()
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> Self {
        ApiQuantity(quantity.to_string())
    }
}

/// A stored quantity's amount. The API server lets only well-formed ones in; anything else counts as nothing.
#[must_use]
pub fn of(quantity: &ApiQuantity) -> Quantity {
    quantity.0.parse().unwrap_or_default()
}

/// An entry of a resource list such as `requests`; nothing when it is absent.
#[must_use]
pub fn get(list: Option<&std::collections::BTreeMap<String, ApiQuantity>>, name: &str) -> Quantity {
    list.and_then(|list| list.get(name)).map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().map_or_else(|error| error.to_string(), |quantity| quantity.to_string())
    }

    #[test]
    fn canonical_form() {
        for (text, expected) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1025", "1025"),
            ("1000", "1k"),
            ("1000000", "1M"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("-1", "-1"),
            ("+2", "2"),
            ("0.0000000001", "1n"),
            ("1e-12", "1e-9"),
            ("1.1Ki", "1126400m"),
            ("100000000000000000000", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("2Ei", "2Ei"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn errors() {
        for text in ["", "a", "1.2.3", "1 Gi", "--1", ".", "1%"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Format), "{text}");
        }
        for text in ["1mm", "1K", "1ki", "1e", "1Eii", "1e3e"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Suffix), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_rounding() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!((parse("100m") + parse("0.9")).to_string(), "1");
        assert_eq!((parse("1Gi") - parse("512Mi")).to_string(), "512Mi");
        assert_eq!((Quantity::ZERO + parse("1Gi")).to_string(), "1Gi");
        assert_eq!(parse("1m").value(), 1);
        assert_eq!(parse("-1m").value(), -1);
        assert_eq!(parse("0.0001").milli_value(), 1);
        assert_eq!(parse("2").milli_value(), 2000);
        assert!(parse("1") < parse("1001m"));
        assert_eq!(parse("1024"), parse("1Ki"));
    }
}
