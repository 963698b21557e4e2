// object: a handler at work on an alternate stack, nested handlers
// status: captured
#include "object.h"

static char stack[65536];
static volatile int inner;

static void nested(int signal) {
    (void)signal;
    inner++;
}

static void long_handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    char *here = (char *)&signal;
    CHECK(here > stack && here < stack + sizeof stack && info->si_value.sival_int == 17);
    object_say("ready");
    for (int round = 1; go_on(); round++) {
        raise(SIGUSR2);
        CHECK_EQUAL(inner, round);
        stack_t now_used;
        CHECK(!sigaltstack(0, &now_used) && now_used.ss_flags == SS_ONSTACK && now_used.ss_sp == stack);
    }
}

int main(void) {
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(!sigaltstack(&alternate, 0));
    struct sigaction outer = {.sa_sigaction = long_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction other = {.sa_handler = nested, .sa_flags = SA_ONSTACK}, ask = {.sa_handler = object_ask};
    sigaction(SIGRTMIN, &outer, 0);
    sigaction(SIGUSR2, &other, 0);
    sigaction(SIGUSR1, &ask, 0);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 17});
    stack_t after;
    CHECK(!sigaltstack(0, &after) && after.ss_flags == 0);
    PASS();
}
