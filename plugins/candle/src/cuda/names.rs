//! What users call GPUs: `cuda` and `auto` are the first, `cuda:1` another, `cuda:0,1` two, `cuda:all` what there is.

use backend_api::Fault;

/// Which of `n` GPUs a device of a request names, in its order.
///
/// # Errors
/// `Unsupported`: what it names is not there, or it is no name.
pub(super) fn ordinals(asked: &str, n: usize) -> Result<Vec<usize>, Fault> {
    let refuse = |why: String| Err(Fault::unsupported(format!("device {asked:?}: {why}")));
    let found = match n {
        0 => return refuse("CUDA's driver finds no GPU here".to_owned()),
        1 => "there is one GPU, 0".to_owned(),
        n => format!("there are GPUs 0 to {}", n - 1),
    };
    let list = match asked {
        "auto" | "cuda" => return Ok(vec![0]),
        "cuda:all" => return Ok((0..n).collect()),
        _ => match asked.strip_prefix("cuda:") {
            Some(list) => list,
            None => {
                return refuse("this plugin runs on cuda, cuda:N, cuda:N,M or cuda:all".to_owned());
            }
        },
    };
    let mut ordinals = Vec::new();
    for name in list.split(',') {
        match name.parse() {
            Ok(ordinal) if n <= ordinal => return refuse(format!("no GPU {ordinal}: {found}")),
            Ok(ordinal) if ordinals.contains(&ordinal) => {
                return refuse(format!("GPU {ordinal} stands there twice"));
            }
            Ok(ordinal) => ordinals.push(ordinal),
            Err(_) => return refuse(format!("{name:?} is no number of a GPU: {found}")),
        }
    }
    Ok(ordinals)
}

/// What a description calls them.
pub(super) fn name(ordinals: impl IntoIterator<Item = usize>) -> String {
    let names: Vec<_> = ordinals
        .into_iter()
        .map(|ordinal| ordinal.to_string())
        .collect();
    format!("cuda:{}", names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(asked: &str, n: usize, expected: &[usize]) {
        assert_eq!(ordinals(asked, n).unwrap(), expected, "{asked} of {n}");
    }

    #[track_caller]
    fn refused(asked: &str, n: usize, words: &str) {
        let fault = ordinals(asked, n).unwrap_err();
        assert!(fault.text.contains(words), "{fault}");
    }

    #[test]
    fn gpus_have_names() {
        check("auto", 4, &[0]);
        check("cuda", 1, &[0]);
        check("cuda:3", 4, &[3]);
        check("cuda:2,0", 4, &[2, 0]);
        check("cuda:all", 3, &[0, 1, 2]);
        assert_eq!(name([2, 0]), "cuda:2,0");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        refused("cuda", 0, "no GPU here");
        refused("cuda:1", 1, "there is one GPU, 0");
        refused("cuda:0,4", 4, "GPUs 0 to 3");
        refused("cuda:1,1", 4, "twice");
        refused("cuda:", 4, "is no number");
        refused("gpu", 4, "cuda:N");
    }
}
