//! Exponential back-off with jitter: the one place where delays between tries are computed.

use std::time::Duration;

use rand::Rng;

/// A growing delay between tries.
///
/// Each delay is the one before times `factor`, at most `max`, plus a random share of it of up to `jitter` (0.1 = 10 %).
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    factor: f64,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    /// A back-off that starts at `initial`, doubles, and stays at `max`, with 10 % jitter.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, factor: 2.0, jitter: 0.1, next: initial }
    }

    /// The same with another growth factor (≥ 1).
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor.max(1.0);
        self
    }

    /// The same with another share of jitter (0 for none).
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter.max(0.0);
        self
    }

    /// The delay to wait now; the one after it is longer.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next.min(self.max);
        self.next = delay.mul_f64(self.factor).min(self.max);
        jittered(delay, self.jitter)
    }

    /// Starts over at the first delay, after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

/// `delay` plus a random share of it of up to `share`.
pub fn jittered(delay: Duration, share: f64) -> Duration {
    if share <= 0.0 {
        return delay;
    }
    delay + delay.mul_f64(rand::rng().random_range(0.0..=share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(60)).jitter(0.0);
        let delays: Vec<u64> = (0..5).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_secs(), 10);
    }

    #[test]
    fn jitter_only_adds_and_is_bounded() {
        for _ in 0..1000 {
            let delay = jittered(Duration::from_secs(10), 0.5);
            assert!((10.0..=15.0).contains(&delay.as_secs_f64()), "{delay:?}");
        }
    }
}
