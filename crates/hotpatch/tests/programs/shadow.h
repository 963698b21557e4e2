// An object without room for what a fix has to know of it.
#pragma once
struct session { long number; };
long tries_of(struct session *session);
