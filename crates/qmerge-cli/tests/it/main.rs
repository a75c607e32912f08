//! The program, run as a user runs it.

// A test says on stderr why it checks nothing here.
#![allow(clippy::print_stderr)]

mod arithmetic;
mod asked;
mod bad_input;
mod behaviour;
mod beside;
mod book;
mod bucket;
mod buckets;
mod called;
mod card;
mod export;
mod factors;
mod foreign;
mod gguf;
mod hub;
mod interrupted;
mod licences;
mod model;
mod moments;
mod original;
mod output;
mod page;
mod parts;
mod promote;
mod quantized;
mod release;
mod rounding;
mod running;
mod server;
mod serving;
mod shell;
mod side;
mod stores;
mod text;
mod verify;
mod width;
mod words;
