// object: many pseudo-terminals, watched by epoll, duplicated and inherited, each with something on its way
// status: captured
#include "terminal.h"
#include <sys/epoll.h>

#define PAIRS 24

int main(void) {
    struct pair pairs[PAIRS];
    int set = epoll_create1(0);
    for (int at = 0; at < PAIRS; at++) {
        pairs[at] = open_pair();
        make_raw(pairs[at].slave);
        struct epoll_event event = {EPOLLIN, {.u32 = at}};
        CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, pairs[at].master, &event));
        int twice = dup(pairs[at].slave);
        CHECK(twice >= 0);
        if (fork() == 0) {
            // Answers each byte by the next one.
            close(pairs[at].master);
            for (;;) {
                unsigned char byte;
                if (read(at & 1 ? twice : pairs[at].slave, &byte, 1) != 1) continue;
                byte++;
                put(pairs[at].slave, &byte, 1);
            }
        }
    }
    ready();
    unsigned char next[PAIRS] = {0};
    for (int at = 0; at < PAIRS; at++) put(pairs[at].master, next + at, 1);
    while (go_on()) {
        struct epoll_event events[PAIRS];
        int got = epoll_wait(set, events, PAIRS, 5000);
        if (got < 0 && errno == EINTR) continue;
        CHECK(got > 0);
        for (int which = 0; which < got; which++) {
            int at = events[which].data.u32;
            unsigned char byte;
            CHECK_EQUAL(read(pairs[at].master, &byte, 1), 1);
            CHECK_EQUAL(byte, (unsigned char)(next[at] + 1));
            next[at] = byte;
            put(pairs[at].master, &byte, 1);
        }
    }
    PASS();
}
