//! get and list.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use bosun_store::{Range, Revision};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::call::Call;
use crate::fields;
use crate::object::{Filter, Object, Raw};
use crate::request;
use crate::server::{Inner, stored};

/// How long a request waits for the cache to reach the revision it wants.
const FRESH_DEADLINE: Duration = Duration::from_secs(3);

/// Where the next page of a list begins.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: Revision,
    start: String,
}

/// A `resourceVersion` parameter; `None` when unset.
///
/// # Errors
/// 400 for what is no number.
pub(crate) fn resource_version(call: &Call) -> Result<Option<Revision>, ApiError> {
    match call.query.get("resourceVersion") {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!(
                "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))
        }),
    }
}

impl Inner {
    pub(crate) async fn get(&self, call: &Call) -> Result<Response<Body>, ApiError> {
        if let Some(wanted) = resource_version(call)?
            && wanted > 0
        {
            self.wait_for(wanted).await?;
        }
        let raw = self.current(call).await?;
        Ok(call.object(StatusCode::OK, &raw))
    }

    /// The object that a call names, as it is now.
    ///
    /// # Errors
    /// 404.
    pub(crate) async fn current(&self, call: &Call) -> Result<Raw, ApiError> {
        let key = call.resource.key(call.namespace(), &call.info.name);
        let kv = self.store.get(&key).await.map_err(stored)?;
        kv.map(|kv| Raw::of(&kv)).ok_or_else(|| call.not_found())
    }

    /// What a list, a watch or a deletecollection is to see.
    ///
    /// # Errors
    /// 400 for selectors that are none.
    pub(crate) fn filter(&self, call: &Call) -> Result<Filter, ApiError> {
        let (labels, fields) = request::selectors(&call.query)?;
        let unknown = fields.requirements.iter().find(|r| !fields::known(call.resource, &r.field));
        if let Some(unknown) = unknown {
            let field = &unknown.field;
            return Err(ApiError::bad_request(match fields::of(call.resource) {
                [] => {
                    format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                }
                _ => format!("field label not supported: {field}"),
            }));
        }
        Ok(Filter { resource: call.resource, namespace: call.namespace().to_owned(), labels, fields })
    }

    /// Wait until the caches show a revision.
    ///
    /// # Errors
    /// 504 if it is not reached soon.
    pub(crate) async fn wait_for(&self, revision: Revision) -> Result<(), ApiError> {
        match self.caches.wait_for(revision, FRESH_DEADLINE).await {
            true => Ok(()),
            false => Err(ApiError::too_large(revision, self.caches.revision())),
        }
    }

    /// Wait until the caches show everything that was acknowledged before the call.
    pub(crate) async fn wait_until_fresh(&self) -> Result<(), ApiError> {
        let now = self.store.revision().await.map_err(stored)?;
        self.wait_for(now).await
    }

    pub(crate) async fn list(&self, call: &Call) -> Result<Response<Body>, ApiError> {
        let filter = self.filter(call)?;
        let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
        let exact = call.query.get("resourceVersionMatch").unwrap_or_default();
        let page = match (call.query.get("continue").filter(|c| !c.is_empty()), resource_version(call)?) {
            (Some(token), _) => {
                let token = read_continue(token)?;
                let start = format!("{}{}", call.resource.key_prefix(None), token.start);
                self.page_at(&filter, Some(start), limit, token.rv, true).await?
            }
            (None, Some(wanted)) if wanted > 0 && (exact == "Exact" || (limit > 0 && exact.is_empty())) => {
                self.wait_for(wanted).await?;
                self.page_at(&filter, None, limit, wanted, false).await?
            }
            (None, wanted) => {
                match wanted {
                    Some(0) => {}
                    Some(wanted) => self.wait_for(wanted).await?,
                    None => self.wait_until_fresh().await?,
                }
                let snapshot = self.caches.list(&filter, None, limit);
                Page {
                    last: snapshot.objects.last().map(|o| o.key.to_string()).filter(|_| snapshot.more),
                    objects: snapshot.objects.iter().map(|o| o.raw.clone()).collect(),
                    remaining: snapshot.remaining,
                    revision: snapshot.revision,
                }
            }
        };
        let metadata = page.metadata(&call.resource.key_prefix(None));
        Ok(call.list(page.objects, &metadata))
    }

    /// A page of the past, out of the store.
    async fn page_at(
        &self,
        filter: &Filter,
        start: Option<String>,
        limit: usize,
        revision: Revision,
        continued: bool,
    ) -> Result<Page, ApiError> {
        let prefix = filter.resource.key_prefix(Some(&filter.namespace));
        let everything = filter.is_everything();
        // With a selector nobody knows how many keys make a page: all are looked at.
        let asked = if everything { limit } else { 0 };
        let range = Range { prefix, start, limit: asked, revision: Some(revision) };
        let listing = self.store.list(range).await.map_err(|e| match e {
            bosun_store::Error::Compacted { .. } if continued => ApiError::continue_expired(),
            other => stored(other),
        })?;
        let mut page = Page { objects: Vec::new(), last: None, remaining: None, revision };
        let mut last_key = None;
        let mut more = listing.remaining > 0;
        for kv in listing.items {
            let object = Object::new(filter.resource, kv.key.clone(), Raw::of(&kv));
            if !filter.matches(&object) {
                continue;
            }
            if limit > 0 && page.objects.len() == limit {
                more = true;
                break;
            }
            last_key = Some(kv.key);
            page.objects.push(object.raw);
        }
        if more {
            page.last = last_key.map(|key| key.to_string());
            page.remaining = (everything && listing.remaining > 0).then_some(listing.remaining);
        }
        Ok(page)
    }
}

/// One page of a list.
struct Page {
    objects: Vec<Raw>,
    /// The key of the last object, if there are more behind it.
    last: Option<String>,
    remaining: Option<usize>,
    revision: Revision,
}

impl Page {
    fn metadata(&self, prefix: &str) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(last) = &self.last {
            let start = format!("{}\0", last.strip_prefix(prefix).unwrap_or(last));
            let token = Continue { v: "meta.k8s.io/v1".into(), rv: self.revision, start };
            let token = serde_json::to_vec(&token).unwrap_or_default();
            metadata["continue"] = URL_SAFE_NO_PAD.encode(token).into();
            if let Some(remaining) = self.remaining {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        metadata
    }
}

fn read_continue(token: &str) -> Result<Continue, ApiError> {
    let bad = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|e| bad(&e.to_string()))?;
    let token: Continue = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    match token.v.as_str() {
        "meta.k8s.io/v1" if token.rv > 0 && !token.start.is_empty() && !token.start.contains("..") => Ok(token),
        "meta.k8s.io/v1" => Err(bad("incorrect encoded start resourceVersion or key")),
        other => Err(bad(&format!("server does not recognize this encoded version {other:?}"))),
    }
}
