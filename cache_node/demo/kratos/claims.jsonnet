local session = std.extVar('session');

{
  claims: {
    email: session.identity.traits.email,
    schema: session.identity.schema_id,
    aal: session.authenticator_assurance_level,
  },
}
