//! The JavaScript client in Chromium on bad networks: in a laboratory, under a stream of 20 publications per second, none
//! of which may be lost, repeated or out of order.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidegate_interop_tests::bench::mobility::{Measured, Restart, browser, play};
use tidegate_transport::netem::Profile;

#[test]
fn without_udp_it_connects_by_web_socket_and_the_next_page_knows() -> Result<()> {
    let first = play(profile(), 1, |stage| browser::blocked(stage, 2))?;
    println!("UDP blocked: connected after {:?}", first.times);
    let second = play(profile(), 1, |stage| browser::remembered(stage, 2))?;
    println!("UDP blocked, remembered: connected after {:?}", second.times);
    Ok(())
}

#[test]
fn from_a_black_hole_it_moves_to_web_socket_and_back_when_udp_is() -> Result<()> {
    let (away, back) = play(profile(), 2, |stage| browser::black_hole(stage, 1))?;
    println!("UDP black-holed: longest gap {:?}; on the way back {:?}", away.times, back.times);
    never_cut_off(&back)
}

#[test]
fn it_does_not_take_a_restart_of_the_server_for_a_block() -> Result<()> {
    for how in [Restart::InOrder, Restart::Crash] {
        let restarted = play(profile(), 3, move |stage| browser::restart(stage, 1, how))?;
        println!("server restarted ({how:?}): longest gap {:?}", restarted.times);
    }
    Ok(())
}

#[test]
fn its_session_goes_through_an_outage_of_eight_seconds() -> Result<()> {
    let outage = play(profile(), 4, |stage| browser::outage(stage, 1, Duration::from_secs(8)))?;
    println!("outage of 8 s: up to date {:?} behind its end, cut off {} times", outage.times, outage.losses);
    Ok(())
}

/// It moved with one connection beside the other: the app was never told that there is none.
fn never_cut_off(measured: &Measured) -> Result<()> {
    ensure!(measured.losses == 0, "cut off {} times", measured.losses);
    Ok(())
}

fn profile() -> Profile {
    Profile::delay(Duration::from_millis(30)).with_rate(20_000_000, 250_000)
}
