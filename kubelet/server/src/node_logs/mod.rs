//! `/logs/`: the node's log folder, and the logs of its services by query.

mod files;
mod query;

use std::path::PathBuf;

use bosun_kit::http::{Body, text};
use http::{Response, StatusCode};

use query::{LogQuery, QueryError};

/// Answers `/logs/{path}?{pairs}`. Queries are understood where `queries` allows it; elsewhere they mean nothing.
pub(crate) async fn respond(root: PathBuf, path: String, pairs: &[(String, String)], queries: bool) -> Response<Body> {
    let query = if queries { LogQuery::parse(pairs) } else { Ok(None) };
    match query {
        Ok(None) => files::respond(root, path).await,
        Ok(Some(_)) if !path.is_empty() => text(StatusCode::NOT_ACCEPTABLE, "path not allowed in query mode\n"),
        Ok(Some(LogQuery::File(file))) => files::respond(root, file.trim_start_matches('/').to_owned()).await,
        Ok(Some(LogQuery::Services(services))) => services.respond(root, query::JOURNAL).await,
        Err(error @ QueryError::Unreadable(_)) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        Err(error @ QueryError::Unacceptable(_)) => text(StatusCode::NOT_ACCEPTABLE, format!("{error}\n")),
    }
}
