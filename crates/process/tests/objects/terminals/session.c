// object: a session with a controlling pseudo-terminal: foreground and background groups, /dev/tty, signals from the keyboard
// status: captured
#include "terminal.h"

static volatile sig_atomic_t interrupts;

static void count(int signal) {
    (void)signal;
    interrupts++;
}

static void leader(const char *name) {
    CHECK(setsid() > 0);
    int tty = open(name, O_RDWR);
    CHECK(tty >= 0);
    CHECK_EQUAL(tcgetsid(tty), getpid());
    signal(SIGTTOU, SIG_IGN);
    int answers[2];
    CHECK(!pipe(answers));
    pid_t job = fork();
    if (job == 0) {
        setpgid(0, 0);
        signal(SIGINT, count);
        int own = open("/dev/tty", O_RDWR);
        CHECK(own >= 0);
        put(own, "job\n", 4);
        int seen = 0;
        for (;;) {
            if (interrupts != seen) {
                seen = interrupts;
                CHECK_EQUAL(tcgetpgrp(own), getpgrp());
                put(answers[1], "i", 1);
            }
            usleep(1000);
        }
    }
    signal(SIGINT, count);
    setpgid(job, job);
    CHECK(!tcsetpgrp(tty, job));
    // The leader stays in the background.
    for (;;) {
        char byte;
        ssize_t got = read(answers[0], &byte, 1);
        if (got == 1) {
            CHECK_EQUAL(interrupts, 0);
            CHECK_EQUAL(tcgetpgrp(tty), job);
            CHECK_EQUAL(getpgid(job), job);
            CHECK_EQUAL(getsid(job), getpid());
            put(tty, "hit\n", 4);
        }
    }
}

// The echo, and what the leader says of the interrupt, in whichever order: the kernel signals before it echoes
// (n_tty_receive_signal_char of drivers/tty/n_tty.c).
static void expect_interrupt(int master) {
    char got[8] = {0};
    for (size_t done = 0; done < 7;) {
        ssize_t more = read(master, got + done, 7 - done);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) FAIL("%zd after `%s`", more, got);
        done += more;
    }
    char *echo = strstr(got, "^C");
    if (!echo) FAIL("no echo in `%s`", got);
    memmove(echo, echo + 2, strlen(echo + 2) + 1);
    if (strcmp(got, "hit\r\n")) FAIL("`%s` beside the echo", got);
}

int main(void) {
    struct pair pair = open_pair();
    if (fork() == 0) leader(pair.name);
    expect(pair.master, "job\r\n", 5);
    usleep(20000);
    ready();
    int more;
    do {
        more = go_on();
        put(pair.master, "\x03", 1);
        expect_interrupt(pair.master);
    } while (more);
    CHECK(tcgetpgrp(pair.master) > 0);
    PASS();
}
