//! What the README and the book say, held against the program: command lines, options, fields of documents, links.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::error::ErrorKind;
use qmerge::adapters::ADAPTERS;
use qmerge::arch;
use qmerge::formats::FORMATS;
use qmerge::progress::Progress;
use qmerge::round::ROUNDINGS;
use serde_json::Value;

use crate::args::Cli;

struct Quiet;

impl Progress for Quiet {}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Paths of the Markdown files at the top and in the book.
fn files() -> Vec<PathBuf> {
    fn collect(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() && deep {
                collect(&path, deep, found);
            } else if path.extension().is_some_and(|ext| ext == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root(), false, &mut found);
    collect(&root().join("docs/src"), true, &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn chapter(name: &str) -> String {
    read(&root().join("docs/src").join(name))
}

/// Lines with whether each stands in a fenced block, and the block's language. Fences themselves are left out.
fn lines(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut inside = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            inside = if inside.is_some() { None } else { Some(language.trim()) };
        } else {
            found.push((line, inside));
        }
    }
    found
}

/// The words of the first command of a line, as a POSIX shell reads them: quotes, comments, and the end at an operator.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut open) = (None, false);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => {
                if !open {
                    words.push(String::new());
                }
                (quote, open) = (Some(c), true);
            }
            None if "|>&;".contains(c) || c == '#' && !open => break,
            None if c.is_whitespace() => open = false,
            _ => {
                if !open {
                    words.push(String::new());
                    open = true;
                }
                words.last_mut().unwrap().push(c);
            }
        }
    }
    words
}

/// A line of a script with 1 in place of what its shell, make or GNU parallel fills in.
fn filled(line: &str) -> String {
    let holes = regex::Regex::new(r"\$\(\([^)]*\)\)|\$\{\w+\}|\$[A-Za-z_]\w*|\{\}").unwrap();
    holes.replace_all(line, "1").into_owned()
}

/// The lines of a text's shell blocks, those of workflows and makefiles among them: each as one, however many lines it was put on, without what stands before
/// the command.
fn scripts(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    // A line that ends so goes on; what YAML folds goes on as long as lines stand deeper.
    let (mut goes_on, mut folded) = (false, None);
    for (line, language) in lines(text) {
        let Some(language) = language.filter(|name| ["", "sh", "text", "bash", "yaml", "make"].contains(name)) else {
            (goes_on, folded) = (false, None);
            continue;
        };
        let depth = line.len() - line.trim_start().len();
        let mut line = line.trim().trim_start_matches("$ ");
        if goes_on || folded.is_some_and(|above| depth > above) {
            *found.last_mut().unwrap() += &format!(" {}", line.trim_end_matches('\\'));
        } else {
            folded = None;
            if language == "yaml" {
                line = line.trim_start_matches("- ").trim_start_matches("run: ");
                folded = (line == ">").then_some(depth);
            }
            found.push(line.trim_start_matches('>').trim_end_matches('\\').to_owned());
        }
        goes_on = line.ends_with('\\');
    }
    found.iter().map(|line| filled(line.trim())).collect()
}

/// The command lines of the program in a text's shell blocks.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in scripts(text) {
        for (at, _) in line.match_indices("qmerge ") {
            // At the beginning, behind another command, or started by parallel, whose own arguments follow.
            let before = &line[..at];
            if before.is_empty() || before.ends_with("&& ") || before.starts_with("parallel ") && before.ends_with(' ')
            {
                found.push(line[at..].split(" ::: ").next().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn command_lines_are_taken_apart_as_a_shell_does() {
    let text = "```sh\n$ qmerge a 'b  c' \\\n   --d=\"e#\" # f\nqmerge g | h\nqmerge i > j\n```\n```python\nqmerge k\n```\nqmerge l\n";
    let found: Vec<Vec<String>> = commands(text).iter().map(|line| words(line)).collect();
    assert_eq!(found, [vec!["qmerge", "a", "b  c", "--d=e#"], vec!["qmerge", "g"], vec!["qmerge", "i"]]);
    let text = "```yaml\n- run: >\n    qmerge a\n    --b \"$((C + 1))/4\"\n- run: qmerge d ${E}/$f\n- qmerge g\n```\n```bash\nparallel -j 2 qmerge h {}/4 ::: 1 2\ni && qmerge j\n```\n```make\nk: l\n\tqmerge m $@\n```\n";
    let found: Vec<Vec<String>> = commands(text).iter().map(|line| words(line)).collect();
    let wanted: [&[&str]; 6] = [
        &["qmerge", "a", "--b", "1/4"],
        &["qmerge", "d", "1/1"],
        &["qmerge", "g"],
        &["qmerge", "h", "1/4"],
        &["qmerge", "j"],
        &["qmerge", "m", "$@"],
    ];
    assert_eq!(found, wanted);
}

#[test]
fn every_command_line_in_the_documentation_parses() {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in files() {
        for line in commands(&read(&path)) {
            count += 1;
            if let Err(error) = Cli::read(words(&line))
                && !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
            {
                wrong.push(format!("{}: {line}\n{error}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 50, "{count} command lines were found");
}

/// The part of a text from `## name` to the next heading of that rank.
fn section<'t>(text: &'t str, name: &str) -> &'t str {
    let heading = format!("\n## {name}\n");
    let start = text.find(&heading).unwrap_or_else(|| panic!("no section `{name}`")) + heading.len();
    text[start..].split("\n## ").next().unwrap()
}

/// True if the text has the word by itself, not as a part of a longer name.
fn names(text: &str, word: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(within) && !text[at + word.len()..].starts_with(within))
}

#[test]
fn the_book_has_every_command_option_and_value() {
    let text = chapter("reference/commands.md");
    let mut missing = Vec::new();
    let mut cli = Cli::command();
    cli.build();
    let of_merge: Vec<&str> =
        cli.find_subcommand("merge").unwrap().get_arguments().map(|arg| arg.get_id().as_str()).collect();
    let as_in_merge = |command: &str, id: &str| ["finish", "plan"].contains(&command) && of_merge.contains(&id);
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let part = section(&text, command.get_name());
        let mut wants: Vec<String> = command.get_visible_aliases().map(str::to_owned).collect();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            // What goes for all commands is told once, before them, and what is about a merge with it.
            if ["help", "version"].contains(&id) || argument.is_hide_set() || as_in_merge(command.get_name(), id) {
                continue;
            }
            if argument.is_global_set() {
                assert!(
                    names(text.split("\n## ").next().unwrap(), &format!("--{}", argument.get_long().unwrap())),
                    "{id}"
                );
                continue;
            }
            wants.extend(argument.get_long().map(|long| format!("--{long}")));
            wants.extend(argument.get_short().map(|short| format!("-{short}")));
            // Base and adapter have other names too, which are told once.
            if command.get_name() == "merge" {
                wants.extend(argument.get_visible_aliases().into_iter().flatten().map(|alias| format!("--{alias}")));
            }
            let values = argument.get_possible_values();
            wants.extend(values.iter().map(|value| value.get_name().to_owned()).filter(|_| id != "double_quant"));
        }
        wants.retain(|want| !names(part, want));
        missing.extend(wants.into_iter().map(|want| format!("{}: {want}", command.get_name())));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Names in the first column of the table whose heading begins so.
fn first_column(text: &str, heading: &str) -> BTreeSet<String> {
    let rows =
        text.lines().skip_while(|line| !line.starts_with(heading)).skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_start_matches('|').split(" |").next().unwrap());
    cells.flat_map(code).map(str::to_owned).collect()
}

/// What a text has between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

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

/// The sources of a file or a folder below the crates, as one text.
fn sources(path: &str) -> String {
    let path = root().join("crates").join(path);
    if path.is_file() {
        return read(&path);
    }
    std::fs::read_dir(&path).unwrap().map(|item| read(&item.unwrap().path())).collect()
}

/// What an expression's first group finds in a text.
fn all<'t>(text: &'t str, expression: &str) -> Vec<&'t str> {
    let expression = regex::Regex::new(expression).unwrap();
    expression.captures_iter(text).map(|found| found.get(1).unwrap().as_str()).collect()
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

#[test]
fn no_column_of_a_table_is_empty() {
    let mut empty = Vec::new();
    for path in files() {
        let text = read(&path).replace(r"\|", "");
        let mut table: Vec<Vec<&str>> = Vec::new();
        // A line more ends the last table.
        for (line, language) in lines(&text).into_iter().chain([("", None)]) {
            if language.is_none() && line.starts_with('|') {
                table.push(line.trim().trim_matches('|').split('|').map(str::trim).collect());
                continue;
            }
            for at in 0..table.first().map_or(0, Vec::len) {
                if table.iter().skip(2).all(|row| row.get(at).is_none_or(|cell| cell.is_empty())) {
                    empty.push(format!("{}: column {} of | {} |", path.display(), at + 1, table[0].join(" | ")));
                }
            }
            table.clear();
        }
    }
    assert!(empty.is_empty(), "{empty:#?}");
}

/// The names of all fields of a document.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            fields(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
        _ => {}
    }
}

#[test]
fn the_book_has_every_field_of_the_documents() {
    let folder = std::env::temp_dir().join(format!("qmerge-docs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let sources = ["--base".into(), path(&demo, "base-nf4"), "--adapter".into(), path(&demo, "adapter")];
    let mut found = BTreeSet::new();
    let mut ask = |command: &str, more: &[&str]| {
        let words =
            std::iter::once(command.to_owned()).chain(sources.clone()).chain(more.iter().map(|&word| word.into()));
        let answer = crate::call(words.map(OsString::from), &Quiet).unwrap();
        fields(&serde_json::from_str(&answer.json).unwrap(), &mut found);
    };
    let (kept, lost, text) = (path(&folder, "kept"), path(&folder, "lost"), path(&demo, "eval.txt"));
    ask("merge", &["-o", &kept, "--residual-rank", "1"]);
    ask("merge", &["-o", &lost, "--rounding", "nearest"]);
    ask("merge", &["-o", &path(&folder, "none"), "--fast", "--dry-run"]);
    ask("verify", &["--merged", &kept]);
    ask("compare", &["--merged", &kept, "--text", &text, "--context", "64", "--windows", "2", "--continuation", "2"]);
    ask("truncate", &["--rank", "1", "-o", &path(&folder, "cut")]);
    let (adapter, combined) = (path(&demo, "adapter"), path(&folder, "combined"));
    let drawn = ["--method", "dare_ties", "--density", "0.5"];
    let words = [&["combine", "--adapter", &adapter, "-o", &combined], &drawn[..]].concat();
    fields(
        &serde_json::from_str(&crate::call(words.iter().map(OsString::from), &Quiet).unwrap().json).unwrap(),
        &mut found,
    );
    let (base, tuned, both) = (path(&demo, "base-nf4"), path(&folder, "tuned"), path(&folder, "both"));
    for words in [
        &["merge", "--base", &base, "--adapter", &adapter, "--to", "bf16", "--fast", "-o", &tuned][..],
        &[
            "merge",
            "--base",
            &base,
            "--adapter",
            &adapter,
            "--lora-scale",
            "q_proj=0.5",
            "--tuned",
            &tuned,
            "--fast",
            "-o",
            &both,
        ],
        &["extract", "--base", &base, "--tuned", &tuned, "--rank", "2", "-o", &path(&folder, "extracted")],
        &["convert-adapter", &base, &adapter, "--rank", "2", "-o", &path(&folder, "converted")],
        &["unmerge", &tuned, &adapter, "-o", &path(&folder, "unmerged")],
    ] {
        let answer = crate::call(words.iter().map(OsString::from), &Quiet).unwrap();
        fields(&serde_json::from_str(&answer.json).unwrap(), &mut found);
    }
    std::fs::remove_dir_all(&folder).unwrap();

    let chapter = chapter("reference/report.md");
    let missing: Vec<&String> = found.iter().filter(|name| !chapter.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in the chapter: {missing:?}");
    // And nothing that no document has, but for fields of rarer merges.
    let rare = ["beside", "unused_tensors", "ignored", "without", "reason", "added", "left_out", "promoted"];
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| row.split(" |").next().unwrap());
    let unknown: Vec<&str> = rows
        .flat_map(|cell| cell.split(['`', ',', ' ']))
        .filter(|name| !name.is_empty() && !found.contains(*name) && !rare.contains(name))
        .collect();
    assert!(unknown.is_empty(), "in the chapter only: {unknown:?}");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// Targets of the links and images of a text, without code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (line, language) in lines(text) {
        if language.is_some() {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect();
        for piece in prose.split("](").skip(1) {
            found.extend(piece.split(')').next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for path in files() {
        let text = read(&path);
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, part) = link.split_once('#').map_or((link.as_str(), None), |(file, part)| (file, Some(part)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = match part {
                _ if !target.exists() => false,
                None => true,
                Some(part) => lines(&read(&target))
                    .iter()
                    .filter(|(line, language)| language.is_none() && line.starts_with('#'))
                    .any(|(line, _)| anchor(line.trim_start_matches('#')) == part),
            };
            if !there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(count > 50, "{count} links were found");
}

#[test]
fn every_chapter_is_in_the_summary_and_every_image_is_used() {
    let source = root().join("docs/src");
    let summary = links(&chapter("SUMMARY.md"));
    let mut used = BTreeSet::new();
    for path in files() {
        let name = path.strip_prefix(&source).map(|name| name.to_string_lossy().into_owned());
        if let Ok(name) = name {
            assert!(name == "SUMMARY.md" || summary.contains(&name), "{name} is not in SUMMARY.md");
        }
        let near = path.parent().unwrap();
        used.extend(links(&read(&path)).iter().filter_map(|link| near.join(link).canonicalize().ok()));
    }
    for item in std::fs::read_dir(source.join("images")).unwrap() {
        let path = item.unwrap().path().canonicalize().unwrap();
        assert!(used.contains(&path), "no text shows {}", path.display());
    }
}
