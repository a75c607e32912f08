//! The program, run as a user runs it.

mod bad_input;
mod interrupted;
mod model;
mod output;
mod text;
