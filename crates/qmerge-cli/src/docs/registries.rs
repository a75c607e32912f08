//! Tables and sentences have what registries and sources have.

use qmerge::adapters::ADAPTERS;
use qmerge::arch;
use qmerge::formats::FORMATS;
use qmerge::round::ROUNDINGS;

use super::*;

#[test]
fn tables_have_what_the_registries_have() {
    let set = |names: &mut dyn Iterator<Item = &str>| names.map(str::to_owned).collect::<BTreeSet<String>>();
    let formats = |made: bool| {
        set(&mut FORMATS
            .iter()
            .filter(|format| format.is_made() == made && !format.is_of_gguf())
            .map(|format| format.id()))
    };
    assert_eq!(first_column(&chapter("reference/formats.md"), "| `--to` |"), formats(true));
    assert_eq!(first_column(&chapter("reference/formats.md"), "| format |"), formats(false));
    let methods = set(&mut ROUNDINGS.iter().map(|method| method.id()));
    assert_eq!(first_column(&chapter("reference/rounding.md"), "| method | scales |"), methods);
    let commands = chapter("reference/commands.md");
    let runs = commands.split("### Models that can be run\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let types = runs.split("`model_type`s: ").nth(1).unwrap();
    assert_eq!(set(&mut code(types)), set(&mut arch::runnable().flat_map(|family| family.model_types).copied()));

    // In sentences a family of formats is named as its makers do: NF4, int8.
    let readme = read(&root().join("README.md"));
    let row = |name: &str| readme.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap().to_lowercase();
    let limits = chapter("limits.md");
    let limit = limits.lines().find(|line| line.starts_with("- **Formats.**")).unwrap().to_lowercase();
    for format in FORMATS.iter().filter(|format| format.is_made() && !format.id().starts_with("ct-")) {
        assert!(names(&row("models"), format.id()) && names(&limit, format.id()), "{}", format.id());
    }
    let adapters = section(&chapter("reference/adapters.md"), "What is merged").to_uppercase();
    for method in ADAPTERS {
        assert!(names(&adapters, method.peft_type()), "{}", method.peft_type());
    }
    let families = arch::runnable().filter(|family| family.spec.is_some()).count();
    assert!(readme.contains(&format!("{families} families")), "{readme}");
}

#[test]
fn refused_formats_are_named() {
    let source = sources("qmerge/src/formats/recognised/table.rs");
    let ids = all(&source, r#"\bid: "([a-z0-9-]+)""#);
    assert!(ids.len() > 10, "{ids:?}");
    let line = |text: &str, begin: &str| text.lines().find(|line| line.starts_with(begin)).unwrap().to_lowercase();
    let limits = line(&chapter("limits.md"), "- **Formats.**");
    let readme = line(&read(&root().join("README.md")), "No AQLM");
    for id in ids {
        assert!(names(&limits, id), "limits.md: {id}");
        // Of these some kinds are read.
        let is_read = ["compressed-tensors", "nvfp4", "quanto", "torchao"].contains(&id);
        assert!(is_read || names(&readme, id), "README: {id}");
    }
}

#[test]
fn kinds_of_gguf_files_are_named() {
    let code_of = |text: &str| code(text).map(str::to_owned).collect::<BTreeSet<String>>();
    let source = sources("qmerge/src/arch/gguf");
    let formats = chapter("reference/formats.md");
    let row = formats.lines().find(|line| line.starts_with("| architectures |")).unwrap();
    let known: BTreeSet<String> =
        all(&source, r#"\barchitecture: "([\w-]+)""#).into_iter().map(str::to_owned).collect();
    assert_eq!(code_of(row), known);
    let folders = formats.split("The base is a folder of ").nth(1).unwrap().split(", in any format").next().unwrap();
    let lists = all(&source, r"\bmodel_types: &\[([^\]]*)\]");
    let known: BTreeSet<String> =
        lists.into_iter().flat_map(|list| all(list, r#""(\w+)""#)).map(str::to_owned).collect();
    assert_eq!(code_of(folders), known);
}

#[test]
fn states_and_effects_are_explained() {
    let source = sources("qmerge-cli/src/show/verify.rs");
    let states = regex::Regex::new(r#"State::(\w+) => "([a-z ]+)""#).unwrap();
    let snake = |name: &str| regex::Regex::new("(.)([A-Z])").unwrap().replace_all(name, "${1}_$2").to_lowercase();
    let known: BTreeSet<(String, String)> =
        states.captures_iter(&source).map(|found| (found[2].to_owned(), snake(&found[1]))).collect();
    assert!(known.len() > 5, "{known:?}");
    let recipes = chapter("recipes.md");
    let rows = recipes.lines().skip_while(|line| !line.starts_with("| found |")).skip(2);
    let mut told = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').collect();
        told.extend(code(cells[1]).map(str::to_owned).zip(code(cells[2]).map(str::to_owned)));
    }
    assert_eq!(told, known);
    let report = chapter("reference/report.md");
    for (_, state) in &known {
        assert!(report.contains(&format!("\"{state}\"")), "report.md: {state}");
    }

    // What the verdict's field is said to hold where it is defined.
    let source = sources("qmerge/src/report/verdict.rs");
    let field = source.split("pub effect:").next().unwrap().rsplit("pub struct Verdict").next().unwrap();
    let effects: BTreeSet<String> = all(field, r#""([a-z]+)""#).into_iter().map(str::to_owned).collect();
    assert!(effects.len() > 5, "{effects:?}");
    assert_eq!(first_column(&chapter("concepts/measures.md"), "| `effect` |"), effects);
}

#[test]
fn the_book_has_every_function_of_the_python_package() {
    let package = root().join("bindings/python/python/qmerge");
    let public = |module: &str| {
        let source = read(&package.join(format!("{module}.py")));
        let list = source.split("__all__ = [").nth(1).unwrap().split(']').next().unwrap().to_owned();
        code(&list.replace('"', "`")).map(str::to_owned).collect::<Vec<_>>()
    };
    let modules = ["peft", "ray", "torch"];
    // Classes of answers and errors have upper case, and are records of the documents.
    let is_function = |name: &String| name.starts_with(char::is_lowercase) && !modules.contains(&name.as_str());
    let mut wanted: BTreeSet<String> = public("__init__").into_iter().filter(is_function).collect();
    for module in modules {
        let of_module = public(module).into_iter().filter(|name| name.chars().any(char::is_lowercase));
        wanted.extend(of_module.map(|name| format!("{module}.{name}")));
    }
    let told = first_column(&chapter("reference/python.md"), "| function |");
    let told: BTreeSet<String> = told.iter().map(|call| call.split('(').next().unwrap().to_owned()).collect();
    assert_eq!(told, wanted);
}
