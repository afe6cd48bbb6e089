//! vhost-user: the rings of a guest.

pub mod ring;
