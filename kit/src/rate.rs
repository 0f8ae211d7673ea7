//! How often something may be done: so many a second, so many at once (a token bucket, as client-go's flow control).

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// A limit of calls.
#[derive(Debug)]
pub struct Limit(Option<DefaultDirectRateLimiter>);

impl Limit {
    /// `per_second` calls a second in the long run, `burst` at once (at least one). No limit if `per_second` is 0 or less.
    pub fn new(per_second: i32, burst: i32) -> Self {
        let positive = |value: i32| NonZeroU32::new(u32::try_from(value).unwrap_or(0));
        let quota = |rate: NonZeroU32| Quota::per_second(rate).allow_burst(positive(burst).unwrap_or(NonZeroU32::MIN));
        Self(positive(per_second).map(|rate| RateLimiter::direct(quota(rate))))
    }

    /// No limit.
    pub fn none() -> Self {
        Self(None)
    }

    /// Returns when the next call may be made.
    pub async fn ready(&self) {
        if let Some(limiter) = &self.0 {
            limiter.until_ready().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_next_waits() {
        let limit = Limit::new(1, 3);
        for _ in 0..3 {
            assert!(limit.ready().now_or_never().is_some());
        }
        assert!(limit.ready().now_or_never().is_none());
        let free = Limit::new(0, 0);
        assert!((0..100).all(|_| free.ready().now_or_never().is_some()));
    }
}
