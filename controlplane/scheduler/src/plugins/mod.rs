//! The rules about where pods go, each a [`Plugin`].

mod affinity;
mod fit;
mod image;
mod node;
mod spread;

use crate::framework::Plugin;

/// All plug-ins in the order in which they filter.
pub fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node::NodeUnschedulable),
        Box::new(node::NodeName),
        Box::new(node::TaintToleration),
        Box::new(node::NodeAffinity),
        Box::new(node::NodePorts),
        Box::new(fit::NodeResourcesFit),
        Box::new(spread::PodTopologySpread),
        Box::new(affinity::InterPodAffinity),
        Box::new(fit::BalancedAllocation),
        Box::new(image::ImageLocality),
    ]
}
