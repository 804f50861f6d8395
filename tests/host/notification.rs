// SPDX-License-Identifier: Apache-2.0
//! Notifications against real servers: HTTP that answers, fails, hangs and refuses, and SMTP with STARTTLS and login.

mod post;
mod recorder;
mod smtp;
mod webhook;
