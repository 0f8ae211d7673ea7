//! A set of NUMA nodes as bits, with the orders in which the topology manager compares them.

use std::fmt;

/// NUMA nodes by number, up to 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumaMask(u64);

impl NumaMask {
    /// The nodes; those above 63 are left out (no machine that the topology manager takes has them).
    pub fn new(nodes: impl IntoIterator<Item = usize>) -> Self {
        Self(nodes.into_iter().filter(|node| *node < 64).fold(0, |mask, node| mask | 1 << node))
    }

    /// The nodes in ascending order.
    pub fn nodes(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |node| self.contains(*node))
    }

    /// Whether `node` is in it.
    pub fn contains(self, node: usize) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    /// How many nodes.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all its nodes are in `other`.
    pub fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Fewer nodes; with as many, the lower ones.
    pub fn is_narrower(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }

    /// Every combination of `nodes`: small ones first, and the low ones first among equals.
    pub fn combinations(nodes: &[usize]) -> Vec<Self> {
        let all = (1..=nodes.len()).flat_map(|size| combinations(nodes, size));
        all.map(Self::new).collect()
    }
}

/// Every choice of `size` of `items`, in their order.
pub fn combinations(items: &[usize], size: usize) -> Vec<Vec<usize>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let mut found = Vec::new();
    for (position, item) in items.iter().enumerate() {
        for rest in combinations(&items[position + 1..], size - 1) {
            found.push([vec![*item], rest].concat());
        }
    }
    found
}

impl fmt::Display for NumaMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02b}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_come_small_and_low_first() {
        let shown: Vec<String> = NumaMask::combinations(&[0, 1, 2]).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["01", "10", "100", "11", "101", "110", "111"]);
        assert!(NumaMask::new([5]).is_narrower(NumaMask::new([0, 1])));
        assert!(NumaMask::new([0]).is_narrower(NumaMask::new([1])));
    }
}
