//! Named health checks and the answers of `/healthz`, `/livez` and `/readyz` as stock words them.

use std::sync::{Arc, RwLock};

use ::http::{Response, StatusCode};

use crate::http::{Body, text};

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A set of named checks; cheap to clone, shared by who adds and who answers.
#[derive(Clone, Default)]
pub struct Checks {
    checks: Arc<RwLock<Vec<(String, Check)>>>,
}

impl Checks {
    /// An empty set with stock's `ping` check, which always holds.
    pub fn new() -> Self {
        let checks = Self::default();
        checks.add("ping", || Ok(()));
        checks
    }

    /// Adds a check; it must answer at once (it is asked on each request).
    pub fn add(&self, name: impl Into<String>, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let mut checks = self.checks.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        checks.push((name.into(), Arc::new(check)));
    }

    /// The first failing check's name and reason, if any.
    pub fn failing(&self) -> Option<(String, String)> {
        self.snapshot().into_iter().find_map(|(name, check)| check().err().map(|reason| (name, reason)))
    }

    /// The answer to `GET /<endpoint>`: `ok`, or each check's line when `query` has `verbose` or one fails; a single
    /// check by name for `/<endpoint>/<name>`. Names in `exclude=` are passed over.
    pub fn respond(&self, endpoint: &str, single: Option<&str>, query: Option<&str>) -> Response<Body> {
        let query = query.unwrap_or_default();
        let excluded: Vec<&str> = query.split('&').filter_map(|p| p.strip_prefix("exclude=")).collect();
        let verbose = query.split('&').any(|p| p == "verbose" || p.starts_with("verbose="));
        let checks: Vec<_> =
            self.snapshot().into_iter().filter(|(name, _)| single.is_none_or(|wanted| wanted == name)).collect();
        if checks.is_empty() {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let mut lines = String::new();
        let mut failed = false;
        for (name, check) in checks {
            if excluded.contains(&name.as_str()) {
                lines += &format!("[+]{name} excluded: ok\n");
                continue;
            }
            match check() {
                Ok(()) => lines += &format!("[+]{name} ok\n"),
                Err(reason) => {
                    tracing::warn!(check = name, reason, "health check failed");
                    failed = true;
                    lines += &format!("[-]{name} failed: reason withheld\n");
                }
            }
        }
        match (failed, verbose) {
            (true, _) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n")),
            (false, true) => text(StatusCode::OK, format!("{lines}{endpoint} check passed\n")),
            (false, false) => text(StatusCode::OK, "ok"),
        }
    }

    fn snapshot(&self) -> Vec<(String, Check)> {
        self.checks.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn body(response: Response<Body>) -> (u16, String) {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn words_of_stock() {
        let checks = Checks::new();
        assert_eq!(body(checks.respond("healthz", None, None)).await, (200, "ok".into()));
        checks.add("log", || Err("stuck".into()));
        let (status, text) = body(checks.respond("livez", None, None)).await;
        assert_eq!(status, 500);
        assert_eq!(text, "[+]ping ok\n[-]log failed: reason withheld\nlivez check failed\n");
        assert_eq!(body(checks.respond("livez", Some("ping"), None)).await.0, 200);
        assert_eq!(body(checks.respond("livez", None, Some("exclude=log"))).await.0, 200);
        assert_eq!(body(checks.respond("livez", Some("nope"), None)).await.0, 404);
    }
}
