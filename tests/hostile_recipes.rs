//! Recipes that ask for everything at once: mistakes, in time and memory by their own size.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use recant::diagnose;
use recant::error::{Error, Result};
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::stage::{self, STAGES};

use crate::support::cost;
use crate::support::place::{Place, err};

const IMAGES: &str = "[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n";

fn planned(files: &(dyn Fn(&Path) -> Option<String> + Sync)) -> Result<Plan> {
    let reader = |path: &Path| {
        files(path).map(String::into_bytes).ok_or_else(|| Error::io("read", path)(ErrorKind::NotFound.into()))
    };
    let recipe = Recipe::read(Path::new("r.toml"), &reader, &[], STAGES)?;
    Plan::new(&recipe, &stage::evaluate::KIND, &BTreeMap::new())
}

/// What is said of a recipe; its cost in time and memory is within bounds.
#[track_caller]
fn said(files: &(dyn Fn(&Path) -> Option<String> + Sync)) -> String {
    let (memory, (seconds, text)) = cost::memory(|| {
        cost::seconds(|| match planned(files) {
            Ok(plan) => format!("planned: {} stages", plan.order.len()),
            Err(Error::Mistakes(mistakes)) => diagnose::render(&mistakes, false),
            Err(error) => error.to_string(),
        })
    });
    assert!(seconds < 20.0, "{seconds} s");
    assert!(memory < 700 << 20, "{} MB", memory >> 20);
    assert!(text.len() < 3 << 20, "{} bytes of words", text.len());
    text
}

#[track_caller]
fn refused(recipe: &str, words: &str) {
    let text = said(&|_| Some(format!("recipe = 1\n{recipe}")));
    assert!(text.contains(words), "{}", text.chars().take(2000).collect::<String>());
}

#[test]
fn bases_that_double_with_every_file_end() {
    let files: BTreeMap<PathBuf, String> = (0..60)
        .map(|number| {
            let name = if number == 0 { "r.toml".to_owned() } else { format!("{number}.toml") };
            let next = number % 15 + 1;
            (name.into(), format!("recipe = 1\nextends = [\"{next}.toml\", \"{next}.toml\"]\n"))
        })
        .collect();
    // In a ring they name themselves; in a chain they are as many as two to the power of its length.
    assert!(said(&|path| files.get(path).cloned()).contains("extends itself"));
    let chain = |path: &Path| {
        let text = files.get(path)?;
        Some(if path == Path::new("14.toml") { "recipe = 1\n".to_owned() } else { text.clone() })
    };
    assert!(said(&chain).contains("with all that it extends"), "{}", said(&chain));
}

#[test]
fn a_way_round_by_other_names_ends() {
    let text = said(&|_| Some("recipe = 1\nextends = \"x/../r.toml\"\n".to_owned()));
    assert!(text.contains("more than 16 recipes extend one another"), "{text}");
}

#[test]
fn references_do_not_multiply_what_they_insert() {
    let (long, many) = ("x".repeat(1 << 20), "\"${params.a}\", ".repeat(50_000));
    refused(&format!("[params]\na = \"{long}\"\n[defaults]\nb = [{many}]\n{IMAGES}"), "insert too much");
    let items = "1, ".repeat(100_000);
    refused(&format!("[params]\na = [{items}]\n[defaults]\nb = [{many}]\n{IMAGES}"), "insert too much");
    let text = "${params.a}".repeat(50_000);
    refused(&format!("[params]\na = \"{long}\"\n[defaults]\nb = \"{text}\"\n{IMAGES}"), "insert too much");
}

fn numbers(count: usize) -> String {
    let all: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    format!("[{}]", all.join(","))
}

#[test]
fn axes_multiply_no_more_than_a_recipe_can_mean() {
    let axes = |counts: &[usize]| -> String {
        let axes = counts.iter().zip('a'..).map(|(&count, name)| format!("{name} = {}\n", numbers(count)));
        axes.collect::<Vec<_>>().concat()
    };
    let seeded = |name: &str, axis: char| {
        format!(
            "[stages.{name}]\nkind = \"split\"\ndata = \"images\"\nforget = {{ share = 0.1 }}\nseed = \"${{matrix.{axis}}}\"\n"
        )
    };
    refused(&format!("[matrix]\n{}{IMAGES}{}", axes(&[400_000]), seeded("s", 'a')), "has 400000 values");
    let many = (0..100).map(|axis| format!("a{axis} = [1]\n")).collect::<Vec<_>>().concat();
    refused(&format!("[matrix]\n{many}{IMAGES}"), "there are 100 axes");
    let apart = "{ a = 1 },".repeat(5000);
    refused(&format!("[matrix]\na = [1, 2]\nexclude = [{apart}]\n{IMAGES}"), "`exclude` has 5000 tables");
    // One long text in each of ten thousand instances.
    let long = "x".repeat(1 << 20);
    let stage = seeded("s", 'a') + &format!("note = \"{long}\"\n");
    refused(&format!("[matrix]\n{}{IMAGES}{stage}", axes(&[10_000])), "to too many bytes");
    // Each stage by itself is small, but they meet.
    let train = |name: &str, data: &str| {
        format!("[stages.{name}]\nkind = \"train\"\ndata = \"{data}\"\non = \"retain\"\narch = \"mlp\"\nepochs = 1\n")
    };
    let meet = "[stages.u]\nkind = \"unlearn\"\nmethod = \"neggrad_plus\"\nmodel = \"o\"\ndata = \"s\"\nepochs = 1\nseed = \"${matrix.b}\"\n";
    let two = axes(&[500, 500]);
    refused(
        &format!("[matrix]\n{two}{IMAGES}{}{}{meet}", seeded("s", 'a'), train("o", "s")),
        "multiply this stage more than 10000",
    );
    // And a table of all models against all references on all data.
    let table = "[stages.t]\nkind = \"compare\"\ndata = \"s\"\nreference = \"o\"\nmodels = [\"p\"]\n";
    let fresh = |name: &str, axis: char| {
        train(name, "images").replace("on = \"retain\"\n", "") + &format!("seed = \"${{matrix.{axis}}}\"\n")
    };
    refused(
        &format!(
            "[matrix]\n{}{IMAGES}{}{}{}{table}",
            axes(&[300, 300, 300]),
            seeded("s", 'a'),
            fresh("o", 'b'),
            fresh("p", 'c')
        ),
        "rows of this table",
    );
}

#[test]
fn very_many_mistakes_and_very_long_words_are_told_shortly() {
    let many = (0..150_000).map(|number| format!("k{number} = 1\n")).collect::<Vec<_>>().concat();
    refused(&many, "150001 mistakes; nothing was run");
    refused(&format!("{IMAGES}{many}"), "and 149950 more");
    let long = "y".repeat(1 << 20);
    refused(&format!("{long} = 1\n{IMAGES}"), "unknown key");
    refused(
        &format!("[stages.{long}]\nkind = \"{long}z\"\n[stages.s]\nkind = \"split\"\ndata = \"{long}z\"\n"),
        "unknown kind",
    );
    let stage = |n| format!("[stages.s{n}]\nkind = \"split\"\ndata = \"none{n}\"\nforget = {{ share = 0.1 }}\n");
    let stages = (0..9000).map(stage).collect::<Vec<_>>().concat();
    refused(&stages, "there is no stage `none0`");
    // All in one line.
    let line: Vec<String> = (0..100_000).map(|number| format!("k{number} = 1")).collect();
    refused(&format!("[stages]\ns = {{ kind = \"dataset\", {} }}\n", line.join(", ")), "unknown key `k0`");
}

#[test]
fn what_nests_deep_is_a_mistake_and_long_chains_are_none() {
    for deep in [
        format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a = {}1{}", "{a=".repeat(100_000), "}".repeat(100_000)),
        format!("{} = 1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["a"; 100_000].join(".")),
        format!("[[{}]]", vec!["a"; 100_000].join(".")),
    ] {
        refused(&deep, "recur");
    }
    let step = |number: usize, from: usize| {
        format!("[stages.s{number}]\nkind = \"unlearn\"\nmethod = \"nothing\"\nmodel = \"s{from}\"\ndata = \"d\"\n")
    };
    let first = format!(
        "{IMAGES}[stages.d]\nkind = \"split\"\ndata = \"images\"\nforget = {{ share = 0.1 }}\n[stages.s0]\nkind = \"train\"\n\
         data = \"images\"\narch = \"mlp\"\nepochs = 1\n"
    );
    // The last comes first, so that it is reached by the whole chain.
    let chain: String = (1..9000).rev().map(|number| step(number, number - 1)).collect();
    refused(&format!("{chain}{first}"), "planned: ");
    let ring: String = (0..9000).map(|number| step(number, (number + 1) % 9000)).collect();
    let data = first.split("[stages.s0]").next().unwrap();
    refused(&format!("{ring}{data}"), "stages wait for each other");
}

#[test]
fn files_that_never_end_are_refused() {
    let place = Place::new("recipe = 1\nextends = \"/dev/zero\"\n");
    let output = place.run(&["plan", "r.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("no recipe is that large"), "{}", err(&output));
    let recipe = format!(
        "recipe = 1\n{IMAGES}[stages.c]\nkind = \"checkpoint\"\npath = \"/dev/zero\"\narch = \"mlp\"\ntrained_on = \"images\"\n"
    );
    let output = Place::new(&recipe).run(&["plan", "r.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("it is no file"), "{}", err(&output));
}

/// One of these values is looked up very often.
fn excluding(values: &str, exclude: &str) -> String {
    let split = "[stages.s]\nkind = \"split\"\ndata = \"images\"\nforget = { share = 0.1 }\nseed = \"${matrix.a}\"\n";
    format!("[matrix]\na = {values}\nexclude = [{{ a = [{exclude}] }}]\n{IMAGES}{split}")
}

#[test]
fn exclusions_name_as_many_values_as_they_like() {
    refused(&excluding(&numbers(10_000), &"9999,".repeat(500_000)), "planned: 10000 stages");
}

#[test]
fn exclusions_of_what_is_not_there_are_told_shortly() {
    let long: Vec<String> = (0..20).map(|number| format!("\"{}{number}\"", "x".repeat(10_000))).collect();
    refused(&excluding(&format!("[{}]", long.join(",")), &"0,".repeat(500_000)), "has no value 0");
}

#[test]
fn references_are_looked_up_at_once() {
    let params = (0..150_000).map(|number| format!("k{number} = 1\n")).collect::<Vec<_>>().concat();
    let many = "\"${params.k149999}\",".repeat(80_000);
    refused(&format!("[params]\n{params}[defaults]\nb = [{many}]\n{IMAGES}"), "reaches no stage");
    let many = "\"${params.l149999}\",".repeat(80_000);
    refused(&format!("[params]\n{params}[defaults]\nb = [{many}]\n{IMAGES}"), "refers to nothing");
}

#[test]
fn many_small_bases_over_a_large_one_end() {
    let params = (0..250_000).map(|number| format!("k{number} = 1\n")).collect::<Vec<_>>().concat();
    let names = format!("\"large\", {}", "\"small\", ".repeat(10_000));
    let files = |path: &Path| {
        Some(match path.to_str()? {
            "large" => format!("recipe = 1\n[params]\n{params}"),
            "small" => "recipe = 1\n[params]\nk0 = 2\n".to_owned(),
            _ => format!("recipe = 1\nextends = [{names}]\n{IMAGES}"),
        })
    };
    let text = said(&files);
    assert!(text.contains("with all that it extends"), "{}", text.chars().take(2000).collect::<String>());
}

#[test]
fn large_variants_are_taken_in_at_once() {
    let keys = (0..150_000).map(|number| format!("k{number} = 1\n")).collect::<Vec<_>>().concat();
    let stage = "[stages.s]\nkind = \"split\"\ndata = \"images\"\nforget = { share = 0.1 }\nmerge = \"${matrix.a}\"\n";
    refused(&format!("[matrix.a.v]\n{keys}{IMAGES}{stage}"), "unknown key `k0`");
}

#[test]
fn lists_of_stages_that_are_not_there_are_told_shortly() {
    let split = |n| format!("[stages.stage{n}]\nkind = \"split\"\ndata = \"images\"\nforget = {{ share = 0.1 }}\n");
    let stages = (0..9000).map(split).collect::<Vec<_>>().concat();
    let models = "\"stages00\",".repeat(150_000);
    let table =
        format!("[stages.t]\nkind = \"compare\"\ndata = \"stage0\"\nreference = \"stage1\"\nmodels = [{models}]\n");
    refused(&format!("{IMAGES}{stages}{table}"), "there is no stage");
    let models = "\"stage1\",".repeat(150_000);
    let table =
        format!("[stages.t]\nkind = \"compare\"\ndata = \"stage0\"\nreference = \"stage1\"\nmodels = [{models}]\n");
    refused(&format!("{IMAGES}{stages}{table}"), "stage1");
}

#[test]
fn very_long_names_are_not_said_very_often() {
    let long = "y".repeat(1 << 20);
    let keys: Vec<String> = (0..100_000).map(|number| format!("k{number} = 1\n")).collect();
    refused(
        &format!("[stages.{long}]\nkind = \"dataset\"\nsource = \"digits\"\n{}", keys.concat()),
        "unknown key `k0`",
    );
    let exclude = "0,".repeat(300_000);
    refused(&format!("[matrix]\n{long} = [1]\nexclude = [{{ {long} = [{exclude}] }}]\n{IMAGES}"), "has no value 0");
}

#[test]
fn instances_do_not_multiply_what_their_inputs_axes_say() {
    let long = "y".repeat(1 << 20);
    let split = |name: &str, axis: &str, data: &str| {
        format!(
            "[stages.{name}]\nkind = \"split\"\ndata = \"{data}\"\nforget = {{ share = 0.1 }}\nseed = \"${{matrix.{axis}}}\"\n"
        )
    };
    let train = "[stages.t]\nkind = \"train\"\ndata = \"s\"\non = \"retain\"\narch = \"mlp\"\nepochs = 1\nseed = \"${matrix.b}\"\n";
    // A long value of an axis, said in the names of ten thousand instances that inherit it.
    let variants = format!("[matrix.a.x{long}]\nseed = 1\n[matrix.a.y{long}]\nseed = 2\n");
    let merged = split("s", "a", "images").replace("seed = \"${matrix.a}\"", "merge = \"${matrix.a}\"");
    refused(&format!("{variants}[matrix]\nb = {}\n{IMAGES}{merged}{train}", numbers(4900)), "to too many bytes");
    // A long setting of a stage that is multiplied by what it reads.
    let models = format!("[stages.c]\nkind = \"checkpoint\"\npath = \"{long}\"\narch = \"mlp\"\ntrained_on = \"s\"\n");
    refused(
        &format!("[matrix]\nb = {}\n{IMAGES}{}{models}", numbers(9000), split("s", "b", "images")),
        "to too many bytes",
    );
}
