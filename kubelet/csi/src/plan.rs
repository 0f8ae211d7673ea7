//! What is called next for one volume of one pod: plain functions of what is wanted and what is recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a volume is for a pod. Each is written down before what it names is begun, or after it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The pod wants it; it may be staged for the pod.
    #[default]
    Wanted,
    /// Publishing was begun; whether it is published, the driver knows.
    Publishing,
    /// It is published.
    Published,
    /// The pod may use it.
    Ready,
}

/// What a pod wants of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The control plane has to attach it to the node.
    pub attach: bool,
    /// The driver stages.
    pub stage: bool,
    /// The pod gets the device itself.
    pub block: bool,
    /// The kubelet gives what it holds to the pod's group.
    pub group: bool,
    /// It is larger than the claim shows.
    pub expand: bool,
    /// The driver wants to be asked again from time to time.
    pub republish: bool,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait until the control plane has attached it.
    Attach,
    /// Stage it on the node.
    Stage,
    /// Publish it to the pod.
    Publish,
    /// Make the device known under the pod's folder.
    Map,
    /// Have the file system grow.
    Expand,
    /// Give what it holds to the pod's group.
    Group,
    /// The pod may use it.
    Finish,
    /// Take away what [`Step::Map`] made.
    Unmap,
    /// Take it from the pod.
    Unpublish,
    /// Take it from the node.
    Unstage,
    /// Nothing of it is left for the pod.
    Forget,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// What makes the volume ready, given how far it is since the node started and whether it is staged since then.
pub fn set_up(wanted: Wanted, phase: Phase, staged: bool) -> Vec<Step> {
    let publish = phase < Phase::Published;
    let unfinished = phase < Phase::Ready;
    let steps = [
        (publish && wanted.attach, Step::Attach),
        (publish && wanted.stage && !staged, Step::Stage),
        (publish || wanted.republish, Step::Publish),
        (unfinished && wanted.block, Step::Map),
        (wanted.expand, Step::Expand),
        (unfinished && wanted.group, Step::Group),
        (unfinished, Step::Finish),
    ];
    steps.into_iter().filter_map(|(due, step)| due.then_some(step)).collect()
}

/// What is left of a volume for a pod that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// How far it was, whenever that was.
    pub phase: Phase,
    /// The pod had the device itself.
    pub block: bool,
    /// Staging was begun, whenever that was.
    pub staged: bool,
    /// Other pods of the node want it.
    pub others: bool,
}

/// What gives the volume back.
pub fn tear_down(left: Left) -> Vec<Step> {
    let begun = left.phase >= Phase::Publishing;
    let steps = [
        (begun && left.block, Step::Unmap),
        (begun, Step::Unpublish),
        (left.staged && !left.others, Step::Unstage),
        (true, Step::Forget),
    ];
    steps.into_iter().filter_map(|(due, step)| due.then_some(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(steps: &[Step]) -> String {
        steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_way_up() {
        let all = Wanted { attach: true, stage: true, group: true, ..Wanted::default() };
        let rows = [
            ("first pod", set_up(all, Phase::Wanted, false)),
            ("second pod of the node", set_up(all, Phase::Wanted, true)),
            ("killed while publishing", set_up(all, Phase::Publishing, true)),
            ("killed before the group", set_up(all, Phase::Published, true)),
            ("ready", set_up(all, Phase::Ready, true)),
            ("ready, to be told again", set_up(Wanted { republish: true, ..all }, Phase::Ready, true)),
            ("ready, grown", set_up(Wanted { expand: true, ..all }, Phase::Ready, true)),
            ("device", set_up(Wanted { block: true, group: false, ..all }, Phase::Wanted, false)),
            ("simple driver", set_up(Wanted::default(), Phase::Wanted, false)),
        ];
        let lines: Vec<String> = rows.iter().map(|(name, steps)| format!("{name}: {}", text(steps))).collect();
        let golden = "\
first pod: attach, stage, publish, group, finish
second pod of the node: attach, publish, group, finish
killed while publishing: attach, publish, group, finish
killed before the group: group, finish
ready: \n\
ready, to be told again: publish
ready, grown: expand
device: attach, stage, publish, map, finish
simple driver: publish, finish";
        assert_eq!(lines.join("\n"), golden);
    }

    #[test]
    fn the_way_down() {
        let left = |phase, staged, others| Left { phase, block: false, staged, others };
        let rows = [
            ("last pod", tear_down(left(Phase::Ready, true, false))),
            ("others stay", tear_down(left(Phase::Ready, true, true))),
            ("killed while staging", tear_down(left(Phase::Wanted, true, false))),
            ("nothing was begun", tear_down(left(Phase::Wanted, false, false))),
            ("killed while publishing", tear_down(left(Phase::Publishing, true, false))),
            ("device", tear_down(Left { block: true, ..left(Phase::Ready, true, false) })),
        ];
        let lines: Vec<String> = rows.iter().map(|(name, steps)| format!("{name}: {}", text(steps))).collect();
        let golden = "\
last pod: unpublish, unstage, forget
others stay: unpublish, forget
killed while staging: unstage, forget
nothing was begun: forget
killed while publishing: unpublish, unstage, forget
device: unmap, unpublish, unstage, forget";
        assert_eq!(lines.join("\n"), golden);
    }
}
