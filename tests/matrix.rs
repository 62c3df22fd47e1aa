//! `[matrix]`: what is multiplied, what is shared, what is refused.

use std::path::Path;

use recant::error::{Error, Mistake};
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::stage::{STAGES, evaluate};

const BASE: &str = r#"recipe = 1

[stages.images]
kind = "dataset"
source = "digits"

[stages.split]
kind = "split"
data = "images"
forget = { count = 100 }
seed = "${matrix.seed}"

[stages.original]
kind = "train"
data = "images"
arch = { name = "mlp", hidden = [8] }
epochs = 1

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "mlp", hidden = [8] }
epochs = 1

[stages.forgotten]
kind = "unlearn"
merge = "${matrix.method}"
model = "original"
data = "split"

[stages.table]
kind = "compare"
data = "split"
reference = "retrained"
models = ["original", "forgotten"]

[matrix]
seed = [0, 1]

[matrix.method.neggrad]
method = "neggrad"
lr = 0.25
[matrix.method.finetune]
method = "finetune"
"#;

fn read(text: &str, set: &[&str]) -> Result<Recipe, Error> {
    let set: Vec<String> = set.iter().map(|&assignment| assignment.to_owned()).collect();
    Recipe::read(Path::new("r.toml"), &|_| Ok(text.as_bytes().to_vec()), &set, STAGES)
}

fn plan(text: &str) -> Plan {
    let recipe = read(text, &[]).unwrap();
    Plan::new(&recipe, &evaluate::KIND, &std::collections::BTreeMap::new()).unwrap()
}

fn names(plan: &Plan) -> Vec<String> {
    let mut names: Vec<String> = plan.order.iter().map(|&node| plan.step(node).name.clone()).collect();
    names.sort();
    names
}

fn mistakes(text: &str, set: &[&str]) -> Vec<Mistake> {
    match read(text, set) {
        Err(Error::Mistakes(mistakes)) => mistakes,
        Err(other) => panic!("{other}"),
        Ok(_) => Vec::new(),
    }
}

fn complaint(text: &str, set: &[&str]) -> String {
    let all = mistakes(text, set);
    assert_eq!(all.len(), 1, "{all:?}");
    let place = all[0].place.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{place}: {}", all[0].what)
}

#[test]
fn a_stage_is_multiplied_by_what_it_mentions_and_by_what_its_inputs_have() {
    let plan = plan(BASE);
    assert_eq!(
        names(&plan),
        [
            "evaluate(forgotten[seed=0,method=finetune], split[seed=0])",
            "evaluate(forgotten[seed=0,method=neggrad], split[seed=0])",
            "evaluate(forgotten[seed=1,method=finetune], split[seed=1])",
            "evaluate(forgotten[seed=1,method=neggrad], split[seed=1])",
            "evaluate(original, split[seed=0])",
            "evaluate(original, split[seed=1])",
            "evaluate(retrained[seed=0], split[seed=0])",
            "evaluate(retrained[seed=1], split[seed=1])",
            "forgotten[seed=0,method=finetune]",
            "forgotten[seed=0,method=neggrad]",
            "forgotten[seed=1,method=finetune]",
            "forgotten[seed=1,method=neggrad]",
            "images",
            "original",
            "retrained[seed=0]",
            "retrained[seed=1]",
            "split[seed=0]",
            "split[seed=1]",
            "table",
        ]
    );
    let neggrad = plan.named("forgotten[seed=1,method=neggrad]").unwrap();
    assert_eq!((neggrad.settings["method"].as_str(), neggrad.settings["lr"].as_f64()), (Some("neggrad"), Some(0.25)));
    assert_eq!(neggrad.settings["data"], "split[seed=1]");
    assert_eq!(plan.named("split[seed=1]").unwrap().settings["seed"], 1, "a whole reference keeps its type");
    assert_eq!(plan.targets(&["forgotten".to_owned()]).unwrap().len(), 4);
    let rows = plan.named("table").unwrap().settings["measured"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "original[seed=1]").unwrap();
    assert_eq!((row["model"].as_str(), row["reference"].as_str()), (Some("original"), Some("retrained[seed=1]")));
}

#[test]
fn names_leave_no_trace_and_equal_instances_fold() {
    let alone = BASE.replace("\"${matrix.seed}\"", "1").replace("seed = [0, 1]\n", "");
    let (many, one) = (plan(BASE), plan(&alone));
    let print = |plan: &Plan, name: &str| plan.named(name).unwrap().fingerprint.clone();
    assert_eq!(print(&many, "split[seed=1]"), print(&one, "split"));
    assert_eq!(print(&many, "forgotten[seed=1,method=neggrad]"), print(&one, "forgotten[method=neggrad]"));
    let twice = BASE.replace(
        "[matrix.method.finetune]",
        "[matrix.method.same]\nmethod = \"neggrad\"\nlr = 0.25\n[matrix.method.finetune]",
    );
    let folded = plan(&twice);
    assert_eq!(print(&folded, "forgotten[seed=0,method=same]"), print(&folded, "forgotten[seed=0,method=neggrad]"));
    // The table has two rows more, but nothing more is done.
    assert_eq!(folded.order.len(), many.order.len());
}

#[test]
fn exclusions_take_out_instances_that_have_all_the_axes() {
    let text = BASE.replace("seed = [0, 1]", "seed = [0, 1]\nexclude = [{ method = \"neggrad\", seed = [1] }]");
    let found = names(&plan(&text));
    assert!(!found.iter().any(|name| name.contains("seed=1,method=neggrad")), "{found:?}");
    assert_eq!(found.len(), names(&plan(BASE)).len() - 2);
    // What is excluded need not even make sense.
    let clash = BASE.replace("merge = \"${matrix.method}\"", "merge = [\"${matrix.method}\", \"${matrix.more}\"]")
        + "\n[matrix.more.none]\n[matrix.more.rate]\nlr = 0.5\n";
    assert!(mistakes(&clash, &[])[0].what.contains("two merged variants set `lr`"));
    let apart = clash.replace("seed = [0, 1]", "seed = [0, 1]\nexclude = [{ method = \"neggrad\", more = \"rate\" }]");
    assert!(mistakes(&apart, &[]).is_empty(), "{:?}", mistakes(&apart, &[]));
    let wrong = BASE.replace("seed = [0, 1]", "seed = [0, 1]\nexclude = [{ methd = \"neggrad\" }]");
    assert_eq!(complaint(&wrong, &[]), "r.toml:40:14: there is no axis `methd`");
    let wrong = BASE.replace("seed = [0, 1]", "seed = [0, 1]\nexclude = [{ seed = 3 }]");
    assert_eq!(complaint(&wrong, &[]), "r.toml:40:21: the axis `seed` has no value 3");
}

#[test]
fn defaults_and_variants_that_mention_an_axis_multiply_too() {
    let text = BASE.replace("[matrix]", "[defaults]\nbatch = \"${matrix.batch}\"\n\n[matrix]\nbatch = [16, 32]");
    let found = plan(&text);
    assert_eq!(found.named("original[batch=32]").unwrap().settings["batch"], 32);
    let text =
        BASE.replace("lr = 0.25", "lr = \"${matrix.rate}\"").replace("[matrix]", "[matrix]\nrate = [0.5, 0.125]");
    let found = names(&plan(&text));
    assert!(found.contains(&"forgotten[rate=0.125,seed=0,method=neggrad]".to_owned()), "{found:?}");
    assert!(found.contains(&"forgotten[seed=0,method=finetune]".to_owned()), "only what mentions it: {found:?}");
}

#[test]
fn slips_in_a_matrix_are_named_with_their_places() {
    let unused = BASE.replace("seed = [0, 1]", "seed = [0, 1]\nwidth = [1, 2]");
    assert_eq!(complaint(&unused, &[]), "r.toml:40:1: the axis `width` multiplies no stage");
    let empty = BASE.replace("seed = [0, 1]", "seed = []");
    assert!(complaint(&empty, &[]).contains("the axis `seed` has no values"));
    let twice = BASE.replace("seed = [0, 1]", "seed = [0, 0]");
    assert!(complaint(&twice, &[]).contains("the axis `seed` has 0 twice"));
    let kind = BASE.replace("lr = 0.25", "kind = \"train\"");
    assert!(complaint(&kind, &[]).contains("`kind` may not come from a variant"));
    let typo = BASE.replace("seed = \"${matrix.seed}\"", "seed = \"${matrix.sed}\"");
    let all = mistakes(&typo, &[]);
    assert!(all.iter().any(|mistake| mistake.help.as_deref() == Some("did you mean `${matrix.seed}`?")), "{all:?}");
    let both = BASE.replace("merge = \"${matrix.method}\"", "merge = [\"${matrix.method}\", \"${matrix.more}\"]")
        + "[matrix.more.a]\nmethod = \"neggrad\"\n";
    assert!(mistakes(&both, &[])[0].what.contains("two merged variants set `method`"));
    let plain = BASE.replace("merge = \"${matrix.method}\"", "merge = \"${matrix.seed}\"");
    assert!(mistakes(&plain, &[])[0].what.contains("`merge` takes in variants"), "{:?}", mistakes(&plain, &[]));
}

#[test]
fn a_set_that_a_variant_would_beat_is_refused() {
    let found = mistakes(BASE, &["stages.forgotten.lr=1"]);
    assert!(found[0].what.contains("the variant `neggrad` of `method` sets `lr` too"), "{found:?}");
    assert_eq!(found[0].help.as_deref(), Some("--set matrix.method.neggrad.lr=VALUE"));
    assert!(mistakes(BASE, &["matrix.method.neggrad.lr=1"]).is_empty());
}

#[test]
fn a_cycle_among_multiplied_stages_is_still_a_cycle() {
    let text = BASE.replace("model = \"original\"", "model = \"forgotten\"");
    let recipe = read(&text, &[]).unwrap();
    let error = Plan::new(&recipe, &evaluate::KIND, &std::collections::BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("wait for each other"), "{error}");
}

#[test]
fn a_matrix_without_end_is_refused() {
    let values = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let text = BASE
        .replace("seed = [0, 1]", &format!("seed = [{}]\nbatch = [{}]", values(200), values(200).replace('0', "1000")))
        .replace("seed = \"${matrix.seed}\"", "seed = \"${matrix.seed}\"\n");
    let text = text.replace(
        "model = \"original\"",
        "model = \"original\"\nseed = \"${matrix.seed}\"\nbatch = \"${matrix.batch}\"",
    );
    let all = mistakes(&text, &[]);
    assert!(all.iter().any(|mistake| mistake.what.contains("more than 10000 times")), "{all:?}");
}

#[test]
fn the_format_comes_first_in_every_file() {
    assert_eq!(complaint("name = \"x\"\nrecipe = 1\n", &[]), "r.toml:1:1: `name` comes before `recipe = 1`");
    assert!(complaint("name = \"x\"\n", &[]).contains("begins with `recipe = 1`"));
    assert!(complaint("recipe = 2\n", &[]).contains("recipe format 2 is unknown"));
}

#[test]
fn run_tables_say_how_and_leave_no_trace() {
    let with = BASE.replace(
        "epochs = 1\n\n[stages.retrained]",
        "epochs = 1\nrun = { checkpoint_every = { epochs = 5 }, timeout = 60 }\n\n[stages.retrained]",
    );
    let (with, without) = (plan(&with), plan(BASE));
    assert_eq!(with.named("original").unwrap().fingerprint, without.named("original").unwrap().fingerprint);
    assert_eq!(with.named("original").unwrap().run["checkpoint_every"]["epochs"], 5);
    let wrong = BASE.replace("source = \"digits\"", "source = \"digits\"\nrun = { timeoutt = 60 }");
    assert!(complaint(&wrong, &[]).contains("unknown key `timeoutt` in `run` of the stage `images`"));
    let wrong = BASE
        .replace("source = \"digits\"", "source = \"digits\"\nrun = { checkpoint_every = { epochs = 1, steps = 1 } }");
    assert!(complaint(&wrong, &[]).contains("`checkpoint_every` takes one of"));
}

#[test]
fn inner_defaults_leave_no_trace() {
    let said = BASE.replace("epochs = 1\n", "epochs = 1\noptimizer = { name = \"sgd\", momentum = 0.9 }\n");
    let more =
        BASE.replace("epochs = 1\n", "epochs = 1\noptimizer = { name = \"sgd\", momentum = 0.9, nesterov = false }\n");
    let print = |text: &str| plan(text).named("original").unwrap().fingerprint.clone();
    assert_eq!(print(&said), print(&more));
    assert_ne!(print(BASE), print(&said.replace("0.9", "0.5")));
}

#[test]
fn a_model_that_meets_a_split_it_was_not_trained_for_is_a_mistake_of_the_plan() {
    let wrong = |text: &str| {
        let recipe = read(text, &[]).unwrap();
        match Plan::new(&recipe, &evaluate::KIND, &std::collections::BTreeMap::new()) {
            Err(Error::Mistakes(mistakes)) => mistakes.iter().map(|m| m.what.clone()).collect::<Vec<_>>().join("\n"),
            other => panic!("{other:?}"),
        }
    };
    let plain = BASE.replace("\"${matrix.seed}\"", "0").replace("seed = [0, 1]\n", "");
    // The oracle of another split.
    let other = plain.replace("data = \"split\"\non = \"retain\"", "data = \"other\"\non = \"retain\"")
        + "\n[stages.other]\nkind = \"split\"\ndata = \"images\"\nforget = { count = 7 }\n";
    assert!(wrong(&other).contains("`retrained` was trained on `other`, but meets the split `split`"));
    // An original of other images.
    let other = plain.replace("kind = \"train\"\ndata = \"images\"", "kind = \"train\"\ndata = \"more\"")
        + "\n[stages.more]\nkind = \"dataset\"\nsource = \"digits\"\nvalidation = 0.1\n";
    let found = wrong(&other);
    assert!(found.contains("`original` was trained on `more`, but meets the split `split`"), "{found}");
    assert!(found.contains("`forgotten[method=neggrad]` was trained on `more`"), "through the method: {found}");
}

/// A table whose metrics look at the model alone leaves its evaluations independent of the oracle.
#[test]
fn an_evaluation_reads_the_reference_only_where_a_metric_does() {
    let reads = |text: &str| {
        let plan = plan(text);
        let evaluations = plan.order.iter().filter(|&&node| plan.step(node).kind.name == "evaluate");
        evaluations.filter(|&&node| plan.inputs(node).any(|(role, _)| role == "reference")).count()
    };
    assert_eq!(reads(BASE), 0);
    let more =
        BASE.replace("kind = \"compare\"", "kind = \"compare\"\nmetrics = [\"accuracy\", \"mia_confidence\", \"tow\"]");
    assert!(reads(&more) > 2);
}
