//! Resume tickets, as clients send them and as they are inside; slot tickets, and refusals that hold one.

use std::sync::OnceLock;

use tidegate_edge::policy::admission::SlotTicket;
use tidegate_edge::resume::{KEY_BYTES, MAX_TICKET_BYTES, OpenError, TicketKeys};
use tidegate_protocol::hint::Hint;
use tidegate_protocol::reconnect::Reconnect;
use tidegate_protocol::session::resume::Ticket;

/// Anything that comes as a ticket. The corpus holds some that are sealed with this key.
pub fn resume_ticket(input: &[u8]) {
    static KEYS: OnceLock<TicketKeys> = OnceLock::new();
    let keys = KEYS.get_or_init(|| TicketKeys::of(&[7; KEY_BYTES]));
    let Ok(text) = std::str::from_utf8(input) else { return };
    match keys.open(text, 0) {
        Ok(ticket) => {
            assert!(text.len() <= MAX_TICKET_BYTES && !ticket.is_expired(0));
            let again = keys.seal(&ticket).expect("as long as before");
            assert_eq!(keys.open(&again, 0), Ok(ticket));
        }
        Err(error) => assert!(error != OpenError::Expired || text.len() > 40),
    }
    assert!(keys.open(text, u64::MAX).is_err(), "nothing lives for ever");
}

/// What a key's owner could have sealed.
pub fn ticket_content(input: &[u8]) {
    let Ok(ticket) = Ticket::decode(input) else { return };
    assert_eq!(Ticket::decode(&ticket.encode()), Ok(ticket));
}

/// Anything that is shown for a slot.
pub fn slot_ticket(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(ticket) = SlotTicket::from_text(text) else { return };
    assert_eq!(ticket.to_text(), text);
    assert_eq!(SlotTicket::from_bytes(ticket.as_bytes()), Some(ticket));
}

/// The reason of any close.
pub fn refusal_hint(input: &[u8]) {
    let Some(hint) = Hint::parse_bytes(input) else { return };
    if let Hint::Later { after, ticket } = &hint {
        assert!(*after <= Reconnect::MAX_SLOT);
        assert!(ticket.as_ref().is_none_or(|ticket| ticket.len() <= Hint::MAX_TICKET));
    }
    assert_eq!(Hint::parse(&hint.to_string()), Some(hint));
}
