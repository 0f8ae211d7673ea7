//! `/statusz` and `/flagz`: what the process is and with which flags it runs, in stock's text for people.

use std::fmt::Write;

use bosun_kit::http::{Body, text};
use bosun_kit::version::GIT_VERSION;
use http::{HeaderMap, Response, StatusCode, header};
use jiff::Timestamp;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";
/// What the page names as ways to go on.
const PATHS: &str = "/configz /healthz /metrics";

/// The page of `/statusz` for a process that began at `started`.
pub(crate) fn status(headers: &HeaderMap, started: Timestamp, now: Timestamp) -> Response<Body> {
    let up = now.as_second().saturating_sub(started.as_second());
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    let started = started.strftime("%a %b %e %H:%M:%S UTC %Y");
    let page = format!(
        "\nkubelet statusz\n{WARNING}\n\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Binary version: {GIT_VERSION}\n\nPaths: {PATHS}\n"
    );
    answer(headers, page)
}

/// The page of `/flagz`.
pub(crate) fn flags(headers: &HeaderMap, flags: &[(String, String)]) -> Response<Body> {
    let mut page = format!("\nkubelet flagz\n{WARNING}\n\n");
    for (name, value) in flags {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{name}={value}");
    }
    answer(headers, page)
}

fn answer(headers: &HeaderMap, page: String) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).map_or("*/*", |value| value.to_str().unwrap_or_default());
    let plain =
        |kind: &str| matches!(kind.split(';').next().unwrap_or_default().trim(), "*/*" | "text/*" | "text/plain");
    if accept.split(',').any(plain) {
        return text(StatusCode::OK, page);
    }
    text(StatusCode::NOT_ACCEPTABLE, "only text/plain is served here\n")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn pages_are_for_people_alone() {
        let started = "2026-01-02T03:04:05Z".parse().unwrap();
        let now = "2026-01-02T04:05:07Z".parse().unwrap();
        let page = status(&HeaderMap::new(), started, now).into_body().collect().await.unwrap().to_bytes();
        let page = String::from_utf8(page.to_vec()).unwrap();
        assert!(page.contains("Started: Fri Jan  2 03:04:05 UTC 2026\nUp: 1 hr 01 min 02 sec\n"), "{page}");
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, "application/json".parse().unwrap());
        assert_eq!(flags(&headers, &[]).status(), StatusCode::NOT_ACCEPTABLE);
    }
}
