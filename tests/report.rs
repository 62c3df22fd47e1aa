//! Figures and pages, from a recipe to files.

use recant::metric::figure::{Figure, Series, Shape};
use recant::plot::svg;
use serde_json::Value;

use crate::support::place::{Place, SMALL, err, good, out};

fn with_metrics(metrics: &str) -> String {
    let models = "[\"original\", \"unlearned\"]\n";
    SMALL.replace(models, &format!("{models}metrics = [\"accuracy\", \"mia_confidence\", {metrics}]\n"))
}

const ALONE: &str = r#"
[stages.alone]
kind = "evaluate"
model = "original"
data = "split"
metrics = ["accuracy", "confusion", "mia_loss"]
"#;

/// Every tag is closed, and nothing that a reader could take for a tag of its own stands in a text.
fn sound(markup: &str) {
    let mut open = Vec::new();
    for piece in markup.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag ends");
        assert!(!text.contains('>'), "{text}");
        let name = |tag: &str| tag.split([' ', '\n']).next().unwrap().to_owned();
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop().as_deref(), Some(closed)),
            None if tag.ends_with('/') || tag.starts_with('!') || tag.starts_with("meta") => {}
            None => open.push(name(tag)),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_page_has_the_table_and_each_figure_of_each_model_and_needs_no_network() {
    let recipe = with_metrics("\"confusion\", \"mia_roc\"").replace("recipe = 1", "recipe = 1\nname = \"a <b> & c\"");
    let place = Place::new(&recipe);
    good(place.run(&["run", "r.toml", "--quiet"]));
    good(place.run(&["report", "r.toml", "--format", "html", "-o", "page.html"]));
    let page = std::fs::read_to_string(place.folder.path().join("page.html")).unwrap();
    sound(page.split("</style>").last().unwrap().split("<body>").last().unwrap().split("</body>").next().unwrap());
    assert!(page.contains("<h1>a &lt;b&gt; &amp; c</h1>"));
    assert_eq!(page.matches("<svg ").count(), 3 * 2);
    assert_eq!(page.matches("<title>unlearned</title>").count(), 2);
    assert!(page.contains("<td>unlearned</td>") && page.contains("<li>mia_roc: "));
    for outside in ["src=", "href=", "url(", "@import", "<script", "http:"] {
        assert_eq!(page.replace("http://www.w3.org/2000/svg", "").matches(outside).count(), 0, "{outside}");
    }
    // The same page on stdout, and again.
    let again = good(place.run(&["report", "r.toml", "--format", "html"]));
    assert_eq!(out(&again).trim_end(), page.trim_end());
}

/// Whatever the values and names are, the picture is sound and its places are numbers.
#[test]
fn every_shape_is_drawn_whatever_is_in_it() {
    let hostile = "<a & \"b\" 'c'>".to_owned();
    let series = |values: &[f64]| Series::new(&hostile, values.to_vec(), values.to_vec());
    let matrix = |side: usize, value: Option<f64>| Shape::Matrix {
        row_axis: hostile.clone(),
        column_axis: hostile.clone(),
        rows: vec![hostile.clone(); side],
        columns: vec![hostile.clone(); side],
        values: vec![vec![value; side]; side],
    };
    let curve = |lines: Vec<Series>| Shape::Curve { x_axis: hostile.clone(), y_axis: hostile.clone(), lines };
    let bars = |values: &[f64]| Shape::Bars {
        axis: hostile.clone(),
        names: vec![hostile.clone(); values.len()],
        values: values.to_vec(),
    };
    let shapes = [
        matrix(0, None),
        matrix(3, None),
        matrix(10, Some(0.0)),
        matrix(10, Some(-2.5)),
        matrix(100, Some(7.0)),
        curve(vec![]),
        curve(vec![series(&[]), series(&[2.0])]),
        curve(vec![series(&[-1e300, 1e300]), series(&[1e-9, 2e-9])]),
        Shape::Points { groups: vec![] },
        Shape::Points { groups: vec![series(&[]), series(&[1.0, 1.0]), series(&[-4.0])] },
        bars(&[]),
        bars(&[-0.5, 0.0, 3.0]),
    ];
    for shape in shapes {
        let figure = Figure::new("x", "X", shape);
        let picture = svg(&figure, &hostile);
        sound(&picture);
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{figure:?}\n{picture}");
        let size = |name: &str| picture.split(name).nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap();
        assert!((50.0..800.0).contains(&size(" width=\"")) && (50.0..800.0).contains(&size(" height=\"")), "{picture}");
    }
}

#[test]
fn figures_do_not_depend_on_threads() {
    let recipe = with_metrics("\"mia_roc\", \"margins\", \"cka\", \"relearn\", \"tsne\"");
    let [one, many] = ["1", "3"].map(|threads| {
        let place = Place::new(&recipe);
        let mut command = place.command(&["run", "r.toml", "--quiet", "--jobs", threads]);
        good(command.env("RAYON_NUM_THREADS", threads).output().unwrap());
        place.artifacts()
    });
    assert!(one == many);
    assert!(one.values().any(|bytes| String::from_utf8_lossy(bytes).contains("\\\"tsne\\\"")));
}

#[test]
fn figures_go_to_files_as_pictures_and_as_data() {
    let place = Place::new(&(with_metrics("\"confusion\"") + ALONE));
    let early = place.run(&["figures", "r.toml", "-o", "all"]);
    assert_eq!(early.status.code(), Some(1));
    assert!(err(&early).contains("recant run"), "{}", err(&early));
    good(place.run(&["run", "r.toml", "--quiet"]));
    good(place.run(&["figures", "r.toml", "-o", "all"]));
    let names = |folder: &str| {
        let entries = std::fs::read_dir(place.folder.path().join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let of = |models: &[&str]| -> Vec<String> {
        models.iter().flat_map(|m| ["json", "svg"].map(|end| format!("{m}.confusion.{end}"))).collect()
    };
    assert_eq!(names("all"), of(&["alone", "original", "retrained", "unlearned"]));
    for (asked, found) in [
        ("unlearned", vec!["unlearned"]),
        ("alone", vec!["alone"]),
        ("table", vec!["original", "retrained", "unlearned"]),
    ] {
        good(place.run(&["figures", "r.toml", asked, "-o", asked]));
        assert_eq!(names(asked), of(&found));
    }
    let read = |name: &str| std::fs::read_to_string(place.folder.path().join("all").join(name)).unwrap();
    sound(&read("alone.confusion.svg"));
    let data: Value = serde_json::from_str(&read("alone.confusion.json")).unwrap();
    let values = data["shape"]["matrix"]["values"].as_array().unwrap();
    let counts: f64 = values.iter().flat_map(|row| row.as_array().unwrap()).map(|count| count.as_f64().unwrap()).sum();
    assert_eq!((values.len(), counts), (10, 359.0));
    assert_eq!(read("alone.confusion.json"), read("original.confusion.json"));
}

#[test]
fn scores_that_no_table_reads_are_shown() {
    let place = Place::new(&(SMALL.to_owned() + ALONE));
    let run = out(&good(place.run(&["run", "r.toml", "alone"])));
    assert!(run.contains("accuracy.forget %") && run.contains("the oracle's") && run.contains("`alone`"), "{run}");
    assert!(run.contains("mia_loss: 144 forget and 144 test losses"), "{run}");
    let report = out(&good(place.run(&["report", "r.toml", "--format", "markdown"])));
    assert!(report.contains("| accuracy.forget %") && report.contains("| mia_loss"), "{report}");
    let page = out(&good(place.run(&["report", "r.toml", "--format", "html"])));
    assert!(page.contains("<h2>alone</h2>") && page.matches("<svg ").count() == 1, "{page}");
    let json = out(&good(place.run(&["run", "r.toml", "alone", "--json"])));
    let line = json.lines().find(|line| line.contains("\"event\":\"scores\"")).unwrap();
    let scores: Value = serde_json::from_str(line).unwrap();
    assert_eq!(scores["scores"]["numbers"][0]["name"], "accuracy.forget");
    // Those of a table are its own affair.
    let table = out(&good(place.run(&["run", "r.toml", "table", "--json"])));
    assert!(table.contains("\"event\":\"table\"") && !table.contains("\"event\":\"scores\""), "{table}");
    // Nor are they in the report.
    let report = out(&good(place.run(&["report", "r.toml", "--format", "markdown"])));
    assert_eq!((report.matches("| number").count(), report.matches("| model").count()), (1, 1), "{report}");
}

#[test]
fn the_map_shows_what_augmenters_made() {
    let shown = |stage: &str, more: &str| {
        format!(
            "[stages.{stage}]\nkind = \"evaluate\"\nmodel = \"original\"\ndata = \"split\"\nmetrics = [\"tsne\"]\n\
             augment = \"{more}\"\n"
        )
    };
    let made = "[stages.more]\nkind = \"augment\"\nmethod = \"simple\"\ndata = \"split\"\ncount = 50\n\
                [stages.seen]\nkind = \"features\"\nmodel = \"original\"\ndata = \"split\"\n\
                [stages.gan]\nkind = \"augment\"\nmethod = \"opengan\"\nfeatures = \"seen\"\nepochs = 1\n";
    let place = Place::new(&format!("{SMALL}\n{made}{}{}", shown("pictures", "more"), shown("features", "gan")));
    let explained = |stage: &str| out(&good(place.run(&["explain", "r.toml", stage])));
    for (stage, generated) in [("pictures", 50), ("features", 333)] {
        let text = out(&good(place.run(&["run", "r.toml", stage])));
        let note = format!("tsne: 144 forget, 333 retain, 333 test, {generated} generated images");
        assert!(text.contains(&note), "{text}");
    }
    // what a stage noted of itself is told when it is asked about
    assert!(explained("gan").contains("opengan"), "{}", explained("gan"));
    // a generator of features of another split has nothing to show here
    let other = "[stages.other]\nkind = \"split\"\ndata = \"images\"\nforget = { count = 9 }\n";
    let wrong = shown("features", "gan").replace("\"split\"", "\"other\"");
    let output = Place::new(&format!("{SMALL}\n{made}{other}{wrong}")).run(&["plan", "r.toml"]);
    assert!(err(&output).contains("was trained on features with the data `split`, not `other`"), "{}", err(&output));
}

#[test]
fn a_table_of_several_splits_says_all_their_sizes() {
    let axis = "recipe = 1\n\n[matrix]\nforget = [20, 100]\n";
    let recipe = SMALL.replace("recipe = 1\n", axis).replace("{ share = 0.1 }", "{ count = \"${matrix.forget}\" }");
    let place = Place::new(&recipe);
    let text = out(&good(place.run(&["run", "r.toml"])));
    assert!(text.contains("UCI digits: 20, 100 images to forget, 1338, 1418 to retain"), "{text}");
}
