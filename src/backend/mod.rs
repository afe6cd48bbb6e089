//! backend

pub mod config;
