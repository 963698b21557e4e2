// object: processes with a root of their own (`chroot`): set while captured, inherited, nested, working directory outside
// status: captured
// note: the directory has to be on both nodes, or in a scratch directory
#include "object.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void mark(const char *path, char text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, &text, 1) == 1 && !close(fd));
}

static char marked(const char *path) {
    char text = '?';
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    if (read(fd, &text, 1) != 1) text = '!';
    close(fd);
    return text;
}

// What a jailed process finds, answered whenever it is asked.
static int jailed(const char *root, int leaves, char expected, const char *beside) {
    int pair[2];
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    if (!fork()) {
        close(pair[0]);
        char answer[2], order;
        if (chroot(root) || (leaves && chdir("/"))) _exit(1);
        while (read(pair[1], &order, 1) == 1) {
            if (order == 'd' && chroot("deeper")) _exit(2);
            if (order == 'd') expected = 'D';
            answer[0] = marked("/mark") == expected && access("/proc", F_OK) < 0;
            answer[1] = leaves ? 1 : marked(beside) == 'R';
            // Written inside, found again inside.
            mark("/scribble", answer[0]);
            answer[0] = answer[0] && marked("/scribble") == 1;
            if (write(pair[1], answer, 2) != 2) _exit(3);
        }
        _exit(0);
    }
    close(pair[1]);
    return pair[0];
}

static void ask(int jail, char order) {
    char answer[2] = {0};
    CHECK(write(jail, &order, 1) == 1);
    CHECK_EQUAL(read(jail, answer, 2), 2);
    CHECK(answer[0] == 1 && answer[1] == 1);
}

int main(void) {
    CHECK(!mkdir("/run/jail", 0755) && !mkdir("/run/jail/deeper", 0700));
    mark("/run/jail/mark", 'J');
    mark("/run/jail/deeper/mark", 'D');
    mark("/run/mark", 'R');
    CHECK(!chdir("/run"));
    int inside = jailed("/run/jail", 1, 'J', 0), outside = jailed("/run/jail", 0, 'J', "mark");
    ask(inside, 'a');
    ask(outside, 'a');
    ready();
    int step = 0, late = 0;
    do {
        if (++step == 2) late = jailed("/run/jail/deeper", 1, 'D', 0);
        if (step == 8) ask(inside, 'd');
        ask(inside, 'a');
        ask(outside, 'a');
        if (late) ask(late, 'a');
        CHECK(marked("/run/mark") == 'R' && !access("/proc", F_OK));
    } while (go_on());
    PASS();
}
