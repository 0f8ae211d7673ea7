//! portmap: host ports that lead to a container.

use crate::{Call, Code, Error, Plugin, result::CniResult};
use serde::Deserialize;

pub(crate) struct Portmap;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    runtime_config: RuntimeConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Option<Vec<serde_json::Value>>,
}

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let config: Config = call.config()?;
        if config.runtime_config.port_mappings.is_some_and(|list| !list.is_empty()) {
            return Err(Error::new(Code::UnsupportedField, "portmap: portMappings are not supported yet"));
        }
        call.required_prev_result().cloned()
    }
    fn del(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn check(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn gc(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn status(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
}
