use qmerge::{adapters::Adapter,merge::*,open::Checkpoint,plan::*};
use std::path::Path;
fn main(){
 let a:Vec<String>=std::env::args().collect();
 let inputs=Inputs::new(Checkpoint::open(Path::new(&a[1])).unwrap(),vec![Adapter::open(Path::new(&a[2]),1.0).unwrap()]).unwrap();
 let mut o=Options::default(); if let Some(r)=a.get(4){o.rounding=qmerge::round::by_id(r).unwrap();} let plan=Plan::new(&inputs,&o).unwrap();
 let r=run(&inputs,&plan,o.rounding,Path::new(&a[3]),&RunOptions{existing:qmerge::write::Existing{force:true,resume:false},..Default::default()},&Silent).unwrap();
 println!("{:?}\n{:?}", r.summary, r.verdict);
}
