//! What comes through where little does: Server-Sent Events, long poll over a network that loses answers, HTTP/3, pages
//! of other origins.

mod cors;
mod events;
mod http3;
mod losses;
mod proxy;
