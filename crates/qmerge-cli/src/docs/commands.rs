//! Command lines parse, and the chapter on the command line has every command, option and value.

use clap::error::ErrorKind;

use super::*;
use crate::args::Cli;

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

#[test]
fn the_book_has_every_command_option_and_value() {
    let text = chapter("reference/commands.md");
    let mut missing = Vec::new();
    let mut cli = Cli::all();
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
