# A second, independent writer of canonical composefs images (format versions 0
# and 1), plain rather than fast. The tests compare the package with it.
#
#   python3 cfsw.py MIN-VERSION MAX-VERSION DUMP...    writes DUMP.img
import functools,re,struct,hashlib,stat
BLK=4096
M32=0xffffffff
@functools.cache
def xxh32(b,seed):
    P1,P2,P3,P4,P5=2654435761,2246822519,3266489917,668265263,374761393
    rot=lambda x,r:((x<<r)|(x>>(32-r)))&M32
    n=len(b);i=0
    if n>=16:
        v=[(seed+P1+P2)&M32,(seed+P2)&M32,seed&M32,(seed-P1)&M32]
        while i+16<=n:
            for k in range(4):
                v[k]=(rot((v[k]+int.from_bytes(b[i:i+4],'little')*P2)&M32,13)*P1)&M32; i+=4
        h=(rot(v[0],1)+rot(v[1],7)+rot(v[2],12)+rot(v[3],18))&M32
    else: h=(seed+P5)&M32
    h=(h+n)&M32
    while i+4<=n:
        h=(rot((h+int.from_bytes(b[i:i+4],'little')*P3)&M32,17)*P4)&M32; i+=4
    while i<n:
        h=(rot((h+b[i]*P5)&M32,11)*P1)&M32; i+=1
    h^=h>>15; h=(h*P2)&M32; h^=h>>13; h=(h*P3)&M32; h^=h>>16
    return h
def fsverity_sha256(data):
    z=b'\0'
    level=[data[i:i+BLK] for i in range(0,len(data),BLK)]
    if not level: root=b'\0'*32
    else:
        H=[hashlib.sha256(b.ljust(BLK,z)).digest() for b in level]
        while len(H)>1:
            H=[hashlib.sha256(b''.join(H[i:i+128]).ljust(BLK,z)).digest() for i in range(0,len(H),128)]
        root=H[0]
    d=struct.pack('<BBBBIQ64s32s144s',1,1,12,0,0,len(data),root,b'',b'')
    assert len(d)==256
    return hashlib.sha256(d).digest()
class N:
    __slots__=('mode','uid','gid','rdev','sec','nsec','size','nlink','payload','content','digest','xa','ch','link','parent','ino','nid','nb','tail','compact','xs','pos','xl')
    def __init__(s,mode=0):
        s.mode=mode;s.uid=s.gid=s.rdev=s.sec=s.nsec=s.size=0;s.nlink=1;s.payload=None;s.content=None;s.digest=None;s.xa={};s.ch={};s.link=None;s.parent=None
PRE=[(b'user.',1),(b'system.posix_acl_access',2),(b'system.posix_acl_default',3),(b'trusted.',4),(b'security.',6)]
def xidx(k):
    for p,i in PRE:
        if k.startswith(p): return i,k[len(p):]
    return 0,k
def rup(x,a): return (x+a-1)//a*a
def xsize(k,v): return rup(4+len(xidx(k)[1])+len(v),4)
def xenc(k,v):
    i,s=xidx(k); b=struct.pack('<BBH',len(s),i,len(v))+s+v
    return b+b'\0'*(-len(b)%4)
def build(root,minver=0,maxver=1):
    ver=[minver]
    T=lambda n:n.mode&0o170000
    # pass 0: version bump
    st=[root]
    while st:
        n=st.pop()
        if T(n)==stat.S_IFCHR and n.rdev==0 and ver[0]<1<=maxver: ver[0]=1
        st+= [c for c in n.ch.values() if c.link is None]
    # pass 1: overlay xattrs
    def rewrite(root):
        st=[(root,root)]
        while st:
            n,par=st.pop()
            xa={}
            for k,v in n.xa.items():
                if k.startswith(b'trusted.overlay.') : k=b'trusted.overlay.overlay.'+k[len(b'trusted.overlay.'):]
                xa[k]=v
            n.xa=xa
            t=T(n)
            if t==stat.S_IFREG and n.size>0 and n.content is None:
                n.xa[b'trusted.overlay.metacopy']=(b'\0\x24\0\1'+n.digest) if n.digest else b''
                if n.payload: n.xa[b'trusted.overlay.redirect']=b'/'+n.payload if not n.payload.startswith(b'/') else b'/'+n.payload
            if t==stat.S_IFCHR and n.rdev==0:
                n.size=0; n.mode=stat.S_IFREG|(n.mode&0o7777)
                n.xa[b'trusted.overlay.overlay.whiteout']=b''; n.xa[b'user.overlay.whiteout']=b''
                post.append(par)
            for c in n.ch.values():
                if c.link is None: st.append((c,n))
    post=[]
    rewrite(root)
    for p in post:
        p.xa[b'trusted.overlay.overlay.whiteouts']=b'';p.xa[b'user.overlay.whiteouts']=b''
        if ver[0]>=1: p.xa[b'trusted.overlay.overlay.opaque']=b'x';p.xa[b'user.overlay.opaque']=b'x'
    root.xa[b'trusted.overlay.opaque']=b'y'
    for i in range(256):
        nm=b'%02x'%i
        if nm in root.ch: continue
        w=N(stat.S_IFCHR|0o644); w.uid,w.gid,w.sec,w.nsec=root.uid,root.gid,root.sec,root.nsec
        if b'security.selinux' in root.xa: w.xa[b'security.selinux']=root.xa[b'security.selinux']
        root.ch[nm]=w
    # BFS
    order=[];q=[root];root.parent=root;acl=False
    while q:
        nq=[]
        for n in q:
            n.ino=len(order);order.append(n)
            if T(n)==stat.S_IFDIR:
                n.nlink=2+sum(1 for c in n.ch.values() if c.link is None and T(c)==stat.S_IFDIR)
            for k in sorted(n.ch):
                c=n.ch[k]
                if c.link is None: c.parent=n; nq.append(c)
            if b'system.posix_acl_access' in n.xa or b'system.posix_acl_default' in n.xa: acl=True
        q=nq
    mt=min((n.sec,n.nsec) for n in order)
    # shared xattrs
    cnt={}
    for n in order:
        for k,v in n.xa.items(): cnt[k,v]=cnt.get((k,v),0)+1
    sh=sorted([kv for kv,c in cnt.items() if c>1],key=lambda kv:(kv[0],len(kv[1]),kv[1]),reverse=True)
    off={};o=0
    for kv in sh: off[kv]=o;o+=xsize(*kv)
    shsz=o
    def resolve(n):
        while n.link is not None: n=n.link
        return n
    FT={stat.S_IFREG:1,stat.S_IFDIR:2,stat.S_IFCHR:3,stat.S_IFBLK:4,stat.S_IFIFO:5,stat.S_IFSOCK:6,stat.S_IFLNK:7}
    def ents(n):
        d=dict(n.ch); d[b'.']=n; d[b'..']=n.parent
        return [(k,resolve(d[k])) for k in sorted(d)]
    def chunks(n):
        out=[];cur=[];sz=0
        for e in ents(n):
            l=12+len(e[0])
            if sz+l>BLK: out.append(cur);cur=[];sz=0
            cur.append(e);sz+=l
        return out,cur,sz
    pos=1152;nblk=0
    for n in order:
        t=T(n);n.nb=0;n.tail=0
        if t==stat.S_IFDIR:
            full,last,sz=chunks(n);n.nb=len(full)
            if sz>BLK//2: n.nb+=1;sz=0
            n.tail=sz
        elif t==stat.S_IFLNK: n.tail=len(n.payload)
        elif t==stat.S_IFREG and n.size>0:
            if n.content is not None:
                n.nb=n.size//BLK;n.tail=n.size%BLK
                if n.tail>BLK//2:n.nb+=1;n.tail=0
            else:
                cb=max((n.size-1).bit_length() if n.size>1 else 0,12); cb=max(cb,12); cb=min(cb,12+31)
                n.tail=4*(-(-n.size//(1<<cb))); n.rdev=cb-12
        fsz=n.nb*BLK+n.tail if t==stat.S_IFDIR else n.size
        if t==stat.S_IFLNK: fsz=len(n.payload)
        n.compact=(n.sec,n.nsec)==mt and n.nlink<=65535 and n.uid<=65535 and n.gid<=65535 and fsz<=M32
        isz=32 if n.compact else 64
        keys=sorted(n.xa); n.xl=[];ns=0
        for k in keys:
            kv=(k,n.xa[k])
            if kv in off and ns<128: ns+=1;n.xl.append((kv,True))
            else: n.xl.append((kv,False))
        n.xs=(12+4*ns+sum(xsize(*kv) for kv,s in n.xl if not s)) if n.xl else 0
        pos=rup(pos,32)
        if t==stat.S_IFLNK:
            tot=isz+n.xs+n.tail
            pb=pos//BLK;eb=(pos+tot-1)//BLK
            if tot//BLK>0: n.nb+=1;n.tail=0
            if pb!=eb: pos=rup(pos,BLK)
        else:
            rem=BLK-((pos+isz+n.xs)%BLK)
            if rem<n.tail:
                ex=rup(rem,32); rem=BLK-((pos+isz+n.xs+ex)%BLK)
                if n.tail<=rem: pos+=ex
                else: n.nb+=1;n.tail=0;pos=rup(pos,BLK)
        n.pos=pos;n.nid=pos//32;pos+=isz+n.xs+n.tail;nblk+=n.nb
    iend=rup(pos,32)
    dstart=rup(iend+shsz,BLK)
    out=bytearray(dstart)
    struct.pack_into('<IIII',out,0,0xd078629a,1,1 if acl else 0,ver[0])
    struct.pack_into('<IIIBBHQQIIII',out,1024,0xE0F5E1E2,0,6,12,0,root.nid,len(order),mt[0]&0xffffffffffffffff,mt[1],dstart//BLK+nblk,(1024+128)//BLK,iend//BLK)
    cur=dstart;data=bytearray()
    def dblk(es):
        b=bytearray();no=12*len(es);nm=b''
        for k,c in es:
            b+=struct.pack('<QHBB',c.nid,no,FT[T(c)],0);no+=len(k);nm+=k
        return bytes(b)+nm
    for n in order:
        t=T(n);u=0
        lay=2 if n.tail else 0
        if t==stat.S_IFDIR: size=n.nb*BLK+n.tail
        elif t==stat.S_IFREG:
            size=n.size
            if size>0 and n.content is None: lay=4
        elif t==stat.S_IFLNK: size=n.tail if n.nb==0 else len(n.payload)
        else: size=0
        if n.nb>0 and t in(stat.S_IFDIR,stat.S_IFREG,stat.S_IFLNK):
            u=cur//BLK;cur+=BLK*n.nb
        if t in(stat.S_IFCHR,stat.S_IFBLK): u=n.rdev
        if lay==4: u=(u&0xffff0000)|n.rdev
        ic=(n.xs-12)//4+1 if n.xs else 0
        p=n.pos
        if n.compact:
            struct.pack_into('<HHHHIIIIHHI',out,p,lay<<1,ic,n.mode,n.nlink,size,0,u&M32,n.ino,n.uid,n.gid,0);p+=32
        else:
            struct.pack_into('<HHHHQIIIIQII16s',out,p,lay<<1|1,ic,n.mode,0,size,u&M32,n.ino,n.uid,n.gid,n.sec&0xffffffffffffffff,n.nsec,n.nlink,b'');p+=64
        if n.xs:
            f=M32
            for (k,v),s in n.xl:
                i,sfx=xidx(k); f&=~(1<<(xxh32(sfx,(0x25BBE08F+i)&M32)&31))
            b=struct.pack('<IB7x',f,sum(1 for _,s in n.xl if s))
            for kv,s in n.xl:
                if s: b+=struct.pack('<I',(iend%BLK+off[kv])//4)
            for kv,s in n.xl:
                if not s: b+=xenc(*kv)
            assert len(b)==n.xs
            out[p:p+len(b)]=b;p+=len(b)
        if t==stat.S_IFDIR:
            full,last,sz=chunks(n)
            blocks=list(full)
            if len(blocks)<n.nb: blocks.append(last);last=[]
            for es in blocks: data+=dblk(es).ljust(BLK,b'\0')
            if last and n.tail:
                b=dblk(last);assert len(b)==n.tail;out[p:p+len(b)]=b
        elif t==stat.S_IFLNK:
            if n.nb==0: out[p:p+n.tail]=n.payload
            else: data+=n.payload.ljust(BLK,b'\0')
        elif t==stat.S_IFREG and n.size>0:
            if n.content is None:
                if n.tail: out[p:p+n.tail]=b'\xff'*n.tail
                else: data+=b'\xff'*BLK
            else:
                if n.tail: out[p:p+n.tail]=n.content[n.size-n.tail:]
                if n.nb: data+=n.content[:n.size-n.tail].ljust(n.nb*BLK,b'\0')
    p=iend
    for kv in sh:
        b=xenc(*kv);out[p:p+len(b)]=b;p+=len(b)
    return bytes(out)+bytes(data)
def unesc(s):
    one={b'\\':b'\\',b'n':b'\n',b'r':b'\r',b't':b'\t'}
    return re.sub(rb'\\(x..|.)',lambda m:bytes([int(m[1][1:],16)]) if m[1][:1]==b'x' else one[m[1]],s) if b'\\' in s else s
def from_dump(b):
    root=None;idx={};links=[]
    for line in b.split(b'\n'):
        if not line: continue
        f=line.split(b' ')
        path=unesc(f[0]);m=f[2];hl=m.startswith(b'@')
        n=N(int(m.lstrip(b'@'),8))
        opt=lambda x:None if x==b'-' else unesc(x)
        if path==b'/': root=n
        else:
            d,nm=path.rsplit(b'/',1)
            par=idx[d or b'/']; par.ch[nm]=n
        idx[path]=n
        if hl: links.append((n,unesc(f[8])));continue
        n.size=int(f[1]) ;n.nlink=int(f[3]);n.uid=int(f[4]);n.gid=int(f[5])
        t=n.mode&0o170000
        if t in(stat.S_IFCHR,stat.S_IFBLK):
            n.rdev=int(f[6])
        s,_,ns=f[7].partition(b'.');n.sec=int(s);n.nsec=int(ns or 0)
        n.payload=opt(f[8]);n.content=opt(f[9]) if t!=stat.S_IFLNK else None
        if n.content is not None and len(n.content)==0: n.content=None
        dg=opt(f[10]);n.digest=bytes.fromhex(dg.decode()) if dg else None
        if t==stat.S_IFLNK: n.size=len(n.payload)
        for x in f[11:]:
            if not x: continue
            k,_,v=x.partition(b'=');n.xa[unesc(k)]=unesc(v)
    for n,t in links: n.link=idx[t]
    return root
if __name__=='__main__':
    import sys
    for p in sys.argv[3:]:
        img=build(from_dump(open(p,'rb').read()),int(sys.argv[1]),int(sys.argv[2]))
        open(p+'.img','wb').write(img)
