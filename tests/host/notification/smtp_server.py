# SPDX-License-Identifier: Apache-2.0
"""A mail server with STARTTLS and login that prints its port, then each mail as a line of JSON.

Usage: smtp_server.py CERTIFICATE KEY; aiosmtpd must be on PYTHONPATH. Ends with its standard input.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Collector:
    greylisted = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("greylisted@") and address not in self.greylisted:
            self.greylisted.add(address)
            return "451 4.7.1 Greylisted, try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        print(
            json.dumps(
                {
                    "tls": session.ssl is not None,
                    "login": session.auth_data,
                    "from": envelope.mail_from,
                    "to": envelope.rcpt_tos,
                    "content": envelope.content.decode(),
                }
            ),
            flush=True,
        )
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    login = [data.login.decode(), data.password.decode()]
    accepted = login == ["operator", "open sesame"]
    return AuthResult(success=accepted, handled=accepted, auth_data=login)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(
            Collector(),
            hostname="localhost",
            require_starttls=True,
            tls_context=context,
            authenticator=authenticate,
            auth_required=True,
            enable_SMTPUTF8=True,
        ),
        "127.0.0.1",
        0,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
