//! The client against scripted servers, right ones and wrong ones.
